"""A Python function with type hints and a Google-style docstring as a JSON tool schema."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from corral.errors import RenderError
from corral.text.rendered import Tool

Schema = dict[str, Any]

_BASIC: Mapping[Any, str | None] = types.MappingProxyType(
    {
        int: "integer",
        float: "number",
        str: "string",
        bool: "boolean",
        type(None): "null",
        list: "array",
        tuple: "array",
        dict: "object",
        Any: None,
    }
)
_SCALARS = (int, float, str, bool, type(None))
_SECTIONS = ("Args:", "Returns:", "Raises:")
_ENTRY = re.compile(r"(\w+)\s*(?:\([^()]*\))?:(.*)")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def as_tools(tools: Sequence[Tool]) -> list[Schema]:
    """Tools in OpenAI's form, {"type": "function", "function": {...}}, from functions or schemas.

    Raises:
        RenderError: a tool that is neither, or that lacks a name; the message says which.
    """
    return [_as_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def function_schema(function: Callable[..., Any]) -> Schema:
    """The JSON schema of a function: name, description, parameters, and the return value where it is typed.

    Every parameter needs a type hint and a line under `Args:` of the docstring. A parameter with a default is
    not required; `(choices: ["a", "b"])` at the end of its description becomes an enum.

    Raises:
        RenderError: something is missing or has no JSON form; the message names function and parameter.
    """
    name = getattr(function, "__name__", type(function).__name__)
    docstring = inspect.getdoc(function)
    if not docstring:
        raise RenderError(f"the tool {name} has no docstring to describe it")
    described = _read_docstring(docstring)
    parameters, returns = _parameters(function, name)
    for parameter, schema in parameters["properties"].items():
        if parameter not in described.parameters:
            raise RenderError(f"the docstring of the tool {name} does not describe its parameter {parameter}")
        _describe(schema, described.parameters[parameter], f"the tool {name}, parameter {parameter}")
    result: Schema = {"name": name, "description": described.summary, "parameters": parameters}
    if returns is not None:
        result["return"] = (
            returns if described.returns is None else {**returns, "description": described.returns}
        )
    return {"type": "function", "function": result}


def _as_tool(tool: Tool, where: str) -> Schema:
    if not isinstance(tool, Mapping):
        if not callable(tool):
            raise RenderError(f"{where} must be a function or a JSON schema, not {type(tool).__name__}")
        return function_schema(tool)
    schema = dict(tool) if "function" in tool else {"type": "function", "function": tool}
    if schema.get("type", "function") != "function":
        raise RenderError(f"{where}.type is {schema['type']!r}; only tools of type function are supported")
    function = schema["function"]
    if not isinstance(function, Mapping):
        raise RenderError(f"{where}.function must be an object, not {type(function).__name__}")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RenderError(f"{where} has no name")
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise RenderError(f"{where} ({function['name']}): parameters must be an object")
    return {"type": "function", **schema, "function": dict(function)}


def _parameters(function: Callable[..., Any], name: str) -> tuple[Schema, Schema | None]:
    try:
        hints, signature = get_type_hints(function), inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise RenderError(f"the type hints of the tool {name} cannot be read: {error}") from None
    properties: Schema = {}
    required = []
    for index, (key, parameter) in enumerate(signature.parameters.items()):
        where = f"the tool {name}, parameter {key}"
        if parameter.annotation is parameter.empty:
            if index == 0 and key in ("self", "cls"):
                continue
            raise RenderError(f"{where}: it has no type hint")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RenderError(f"{where}: a variable number of arguments has no JSON schema")
        properties[key] = _type_schema(hints[key], where)
        if parameter.default is parameter.empty:
            required.append(key)
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema, _return_schema(hints)


def _return_schema(hints: Mapping[str, Any]) -> Schema | None:
    """The model never writes the return value, so a type without a JSON form is left out."""
    try:
        return _type_schema(hints["return"], "return") if "return" in hints else None
    except RenderError:
        return None


def _type_schema(hint: Any, where: str) -> Schema:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None and isinstance(hint, type) and issubclass(hint, Enum):
        return _enum([member.value for member in hint], where)
    plain = hint if origin is None or arguments or origin is Literal else origin
    if plain in _BASIC:
        name = _BASIC[plain]
        return {} if name is None else {"type": name}
    if origin in (Union, types.UnionType):
        return _union(arguments, where)
    if origin is Literal:
        return _enum(list(arguments), where)
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0], where)}
    if origin is tuple:
        return _tuple(arguments, where)
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], where)}
    raise RenderError(
        f"{where}: the type {hint!r} has no JSON schema; write the tool's schema by hand instead"
    )


def _enum(values: list[Any], where: str) -> Schema:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise RenderError(
            f"{where}: a choice must be a string, a number, a boolean or None, and there must be one"
        )
    names = list(dict.fromkeys(_BASIC[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _union(arguments: Sequence[Any], where: str) -> Schema:
    members = [_type_schema(argument, where) for argument in arguments if argument is not type(None)]
    if len(members) == 1:
        schema = members[0]
    elif all(member.keys() == {"type"} for member in members):
        names = sorted({member["type"] for member in members})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": members}
    return {**schema, "nullable": True} if type(None) in arguments else schema


def _tuple(arguments: Sequence[Any], where: str) -> Schema:
    if len(arguments) < 2 or ... in arguments:
        raise RenderError(f"{where}: a tuple needs a fixed length of two or more; use list for any length")
    return {"type": "array", "prefixItems": [_type_schema(argument, where) for argument in arguments]}


def _describe(schema: Schema, description: str, where: str) -> None:
    choices = _CHOICES.search(description)
    if choices:
        try:
            values = json.loads(choices[1])
        except ValueError:
            values = None
        if not isinstance(values, list):
            raise RenderError(f"{where}: the choices must be a JSON list, not {choices[1]}")
        schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        description = description[: choices.start()].strip()
    schema["description"] = description


@dataclass(frozen=True)
class _Docstring:
    summary: str
    parameters: Mapping[str, str]
    returns: str | None


def _read_docstring(docstring: str) -> _Docstring:
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for line in docstring.splitlines():
        if line.strip() in _SECTIONS:
            current = sections.setdefault(line.strip(), [])
        else:
            current.append(line)
    returns = "\n".join(sections["Returns:"]).strip() if "Returns:" in sections else None
    return _Docstring("\n".join(sections[""]).strip(), _entries(sections.get("Args:", [])), returns)


def _entries(lines: Iterable[str]) -> dict[str, str]:
    """`name: description` lines; what is indented deeper than its name continues the description."""
    entries: dict[str, list[str]] = {}
    indent, words = 0, None
    for line in filter(str.strip, lines):
        depth = len(line) - len(line.lstrip())
        match = _ENTRY.match(line.strip())
        if match and (words is None or depth <= indent):
            indent, words = depth, entries.setdefault(match[1], [])
            words.append(match[2].strip())
        elif words is not None:
            words.append(line.strip())
    return {name: " ".join(filter(None, words)) for name, words in entries.items()}
