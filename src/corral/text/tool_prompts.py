"""How tools are described to Llama 3 models: the exact texts of the published templates and Meta's documents.

Each function gives the text of a message, or a part of one, for tools in OpenAI's form. Sources: the chat
templates published with Llama 3.1, 3.2 and 3.3, and the prompt-format documents of the same versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from corral.errors import RenderError

Schema = Mapping[str, Any]

# The published templates of Llama 3.1 to 3.3; the missing space before "Do not" is theirs.
_TEMPLATE_FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
_TEMPLATE_USER = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n" + _TEMPLATE_FORMAT
)
_TEMPLATE_SYSTEM = (
    "You have access to the following functions. "
    "To call a function, please respond with JSON for a function call." + _TEMPLATE_FORMAT
)

_META_JSON = (
    "Answer the user's question by making use of the following functions if needed.\n"
    "If none of the function can be used, please say so.\n"
    "Here is a list of functions in JSON format:\n"
    "{tools}\n\n"
    "Return function calls in JSON format."
)
_META_FUNCTION_TAG = (
    "You have access to the following functions:\n\n"
    "{tools}\n\n"
    "Think very carefully before calling functions.\n"
    "If you choose to call a function ONLY reply in the following format with no prefix or suffix:\n\n"
    '<function=example_function_name>{{"example_name": "example_value"}}</function>\n\n'
    "Reminder:\n"
    "- If looking for real time information use relevant functions before falling back to brave_search\n"
    "- Function calls MUST follow the specified format, start with <function= and end with </function>\n"
    "- Required parameters MUST be specified\n"
    "- Only call one function at a time\n"
    "- Put the entire function call reply on one line"
)
_META_PYTHONIC_SYSTEM = (
    "You are an expert in composing functions. You are given a question and a set of possible functions.\n"
    "Based on the question, you will need to make one or more function/tool calls to achieve the purpose.\n"
    "If none of the function can be used, point it out. "
    "If the given question lacks the parameters required by the function,\n"
    "also point it out. You should only return the function call in tools call sections.\n\n"
    "If you decide to invoke any of the function(s), you MUST put it in the format of "
    "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n"
    "You SHOULD NOT include any other text in the response.\n\n"
    "Here is a list of functions in JSON format that you can invoke.\n\n"
    "{tools}"
)
_META_PYTHONIC_USER: Mapping[str, str] = MappingProxyType(
    {
        "llama-3.2": (
            "Questions: {question}\n"
            "Here is a list of functions in JSON format that you can invoke:\n"
            "{tools}\n\n"
            "Should you decide to return the function call(s),Put it in the format of "
            "[func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n\n"
            "NO other text MUST be included."
        ),
        "llama-3.3": (
            "Questions: {question}\n"
            "Here is a list of functions in JSON format that you can invoke:\n"
            "{tools}\n\n"
            "Should you decide to return the function call(s), put them in the format of "
            "[func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n\n"
            "You SHOULD NOT include any other text in the response."
        ),
    }
)

# Corral's own, for chat templates that have no place for tools.
_PLAIN = (
    "You have access to the following functions. "
    "To call a function, respond with JSON and nothing else, in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}. '
    "Write several calls one after the other, separated by ; . Do not use variables. "
    "The results come in the next message. If no function is needed, answer in plain text.\n\n"
)

# What Meta's function-tag prompt calls the types of JSON Schema.
_PARAM_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "string": "str",
        "integer": "int",
        "number": "float",
        "boolean": "bool",
        "array": "list",
        "object": "dict",
    }
)


def to_json(value: Any, where: str, indent: int | None = None) -> str:
    """JSON as the published templates write it: characters outside ASCII stay, nothing is HTML-escaped.

    Raises:
        RenderError: the value has no JSON form; the message starts with `where`.
    """
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"{where} cannot be written as JSON: {error}") from None


def template_tools(tools: Sequence[Schema], *, in_user_message: bool) -> str:
    """The part of the published templates that goes before the first user text or the system text."""
    listed = "".join(to_json(tool, _where(tool), 4) + "\n\n" for tool in tools)
    return (_TEMPLATE_USER if in_user_message else _TEMPLATE_SYSTEM) + listed


def plain_tools(tools: Sequence[Schema]) -> str:
    """The system text that describes tools where a chat template has no place for them, in Corral's words."""
    return _PLAIN + "\n".join(to_json(tool, _where(tool)) for tool in tools)


def meta_json_tools(tools: Sequence[Schema]) -> str:
    """The user message that describes tools to be called in JSON (Llama 3.1, 3.3)."""
    return _META_JSON.format(tools="\n".join(map(_json_tool, tools)))


def meta_function_tag_tools(tools: Sequence[Schema]) -> str:
    """The user message that describes tools to be called with a `<function=...>` tag (Llama 3.1, 3.3)."""
    return _META_FUNCTION_TAG.format(tools="\n\n".join(map(_function_tag_tool, tools)))


def meta_pythonic_system(tools: Sequence[Schema]) -> str:
    """The system text that describes tools to be called in Python syntax (Llama 3.2, 3.3)."""
    return _META_PYTHONIC_SYSTEM.format(tools=_pythonic_tools(tools))


def meta_pythonic_user(family: str, tools: Sequence[Schema], question: str) -> str:
    """A user message with the tools around the question; the wording differs between Llama 3.2 and 3.3."""
    return _META_PYTHONIC_USER[family].format(tools=_pythonic_tools(tools), question=question)


def _json_tool(tool: Schema) -> str:
    """Meta's layout: `properties` is a list of objects with one key each, `required` stands on one line."""
    function, where = tool["function"], _where(tool)
    properties, required = _properties(tool)
    described = {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description", ""),
            "parameters": {
                "type": "object",
                "properties": [{key: value} for key, value in properties.items()],
            },
        },
    }
    closing = "\n        }\n    }\n}"
    opened = to_json(described, where, 4).removesuffix(closing)
    return f'{opened},\n            "required": {to_json(required, where)}{closing}'


def _function_tag_tool(tool: Schema) -> str:
    function, where = tool["function"], _where(tool)
    properties, required = _properties(tool)
    described = {
        "name": function["name"],
        "description": function.get("description", ""),
        "parameters": {key: _param(value, key in required) for key, value in properties.items()},
    }
    sentence = f"Use the function '{described['name']}' to '{described['description']}':"
    return f"{sentence}\n{to_json(described, where)}"


def _param(schema: Any, required: bool) -> dict[str, Any]:
    """A parameter in Meta's function-tag prompt: keys in alphabetical order, Python's names of types."""
    fields = dict(schema) if isinstance(schema, Mapping) else {}
    kind = fields.pop("type", None)
    if kind is not None:
        fields["param_type"] = _PARAM_TYPES.get(kind, kind) if isinstance(kind, str) else kind
    return dict(sorted({**fields, "required": required}.items()))


def _pythonic_tools(tools: Sequence[Schema]) -> str:
    """Meta's layout: the parameters are a "dict", with `required` before `properties`."""
    listed = []
    for tool in tools:
        function = tool["function"]
        properties, required = _properties(tool)
        parameters = {"type": "dict", "required": required, "properties": properties}
        rest = {key: value for key, value in _parameters(tool).items() if key not in parameters}
        listed.append(
            {
                "name": function["name"],
                "description": function.get("description", ""),
                "parameters": {**parameters, **rest},
            }
        )
    return to_json(listed, "tools", 4)


def _parameters(tool: Schema) -> Schema:
    parameters: Schema = tool["function"].get("parameters") or {}
    return parameters


def _properties(tool: Schema) -> tuple[dict[str, Any], list[Any]]:
    parameters = _parameters(tool)
    properties = parameters.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise RenderError(f"{_where(tool)}: parameters.properties must be an object")
    return dict(properties), list(parameters.get("required") or ())


def _where(tool: Schema) -> str:
    return f"the schema of the tool {tool['function']['name']}"
