"""Arguments and the JSON schema of a tool's parameters: what text can be converted, and what does not fit.

Only text is converted, only where the schema does not allow text, and only where there is one way to read it.
Everything else stays as the model wrote it, and is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from corral.text.tool_calls.json_reader import json_value
from corral.text.tool_calls.python_reader import python_value
from corral.text.tool_calls.reader import BrokenError, read_whole

Schema = Mapping[str, Any]

_MAX_REFERENCES = 32
_MAX_DEPTH = 64
_INTEGER = re.compile(r"[+-]?[0-9]{1,256}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,256}(\.[0-9]{1,256})?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "false": False}
_ALL = ("null", "boolean", "integer", "number", "string", "array", "object")


class ParameterSchemas:
    """The parameters of one tool.

    Args:
        root: the JSON schema of all its parameters; empty where nothing is known.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        whole = self._resolved(root)
        properties = whole.get("properties")
        self._properties: Schema = properties if isinstance(properties, Mapping) else {}
        required = whole.get("required")
        self._required = [name for name in _list(required) if isinstance(name, str)]
        rest = whole.get("additionalProperties", False)
        self._others: Schema | None = rest if isinstance(rest, Mapping) else {} if rest else None
        self._is_open = "properties" not in whole or bool(whole.get("patternProperties"))

    def names(self) -> list[str]:
        """The names of the parameters, in the schema's order."""
        return list(self._properties)

    def takes_text(self, name: str) -> bool:
        """Whether text is a value of a parameter as it is."""
        return "string" in self._types(self._schema(name))

    def converted(self, name: str, value: Any, notes: list[str]) -> Any:
        """The value of a parameter, converted where that is possible; `notes` gets what there is to say."""
        return self._converted(value, self._schema(name), name, notes, 0)

    def check(self, arguments: Mapping[str, Any], notes: list[str]) -> None:
        """Notes which parameters are missing, and which are unknown."""
        notes += [f"{name} is required, but missing" for name in self._required if name not in arguments]
        if not self._is_open and self._others is None:
            known = self._properties
            notes += [f"{name} is not among the parameters" for name in arguments if name not in known]

    def _schema(self, name: str) -> Schema:
        found = self._properties.get(name, self._others)
        return found if isinstance(found, Mapping) else {}

    def _converted(self, value: Any, schema: Schema, place: str, notes: list[str], depth: int) -> Any:
        if depth > _MAX_DEPTH:
            return value
        schema = self._branch(self._resolved(schema), value)
        types = self._types(schema)
        if isinstance(value, str) and "string" not in types:
            value = self._from_text(value, types, place, notes)
            schema = self._branch(schema, value)
        if not _fits(value, types):
            notes.append(f"{place} is {_shown(value)}, but must be {' or '.join(types)}")
        elif isinstance(schema.get("enum"), list) and value not in schema["enum"]:
            notes.append(f"{place} is {_shown(value)}, which is not one of {_shown(schema['enum'])}")
        if isinstance(value, dict):
            return self._object(value, schema, place, notes, depth)
        if isinstance(value, list):
            items = schema.get("items")
            inner = items if isinstance(items, Mapping) else {}
            prefix = _list(schema.get("prefixItems"))
            return [
                self._converted(
                    item, prefix[i] if i < len(prefix) else inner, f"{place}[{i}]", notes, depth + 1
                )
                for i, item in enumerate(value)
            ]
        return value

    def _object(
        self, value: dict[str, Any], schema: Schema, place: str, notes: list[str], depth: int
    ) -> dict[str, Any]:
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        known: Schema = properties if isinstance(properties, Mapping) else {}
        missing = [name for name in _list(schema.get("required")) if name not in value]
        notes += [f"{place}.{name} is required, but missing" for name in missing]
        if others is False and not schema.get("patternProperties"):
            notes += [f"{place}.{name} is not among the properties" for name in value if name not in known]
        inner = others if isinstance(others, Mapping) else {}
        return {
            name: self._converted(item, known.get(name, inner), f"{place}.{name}", notes, depth + 1)
            for name, item in value.items()
        }

    def _from_text(self, text: str, types: Sequence[str], place: str, notes: list[str]) -> Any:
        readings: list[Any] = []
        for kind in types:
            for reading in _readings(text, kind):
                if not any(_same(reading, other) for other in readings):
                    readings.append(reading)
        if len(readings) != 1:
            return text
        notes.append(f"{place}: the text {_shown(text)} was read as {_shown(readings[0])}")
        return readings[0]

    def _types(self, schema: Any, seen: set[int] | None = None) -> tuple[str, ...]:
        """What a schema allows, as far as types, choices and the branches of unions tell it; `seen` are the
        branches that have been looked at, since they may lead to themselves."""
        seen = set() if seen is None else seen
        schema = self._resolved(schema)
        stated = schema.get("type")
        names = [stated] if isinstance(stated, str) else [n for n in _list(stated) if isinstance(n, str)]
        if not names and isinstance(schema.get("enum"), list):
            names = [_type(value) for value in schema["enum"]]
        if not names and "const" in schema:
            names = [_type(schema["const"])]
        if not names:
            branches = [branch for branch in _branches(schema) if id(branch) not in seen]
            seen.update(map(id, branches))
            names = [name for branch in branches for name in self._types(branch, seen)]
        if schema.get("nullable") is True and names:
            names.append("null")
        return tuple(dict.fromkeys(names)) or _ALL

    def _branch(self, schema: Schema, value: Any) -> Schema:
        """The branch of a union that a value belongs to, by its type and an object's required properties."""
        fitting = [
            found
            for branch in _branches(schema)
            if (found := self._resolved(branch)) and _fits(value, self._types(found))
        ]
        if not fitting:
            return schema
        if isinstance(value, dict):
            complete = [one for one in fitting if all(name in value for name in _list(one.get("required")))]
            fitting = complete or fitting
        rest = {key: item for key, item in schema.items() if key not in ("anyOf", "oneOf")}
        return {**rest, **fitting[0]}

    def _resolved(self, schema: Any, left: Iterator[int] | None = None) -> Schema:
        """A schema with its own reference followed and its parts (allOf) merged, as far as `left` reaches."""
        left = iter(range(_MAX_REFERENCES)) if left is None else left
        for _ in left:
            if not isinstance(schema, Mapping):
                return {}
            reference, parts = schema.get("$ref"), _list(schema.get("allOf"))
            if isinstance(reference, str):
                rest = {key: item for key, item in schema.items() if key != "$ref"}
                schema = {**self._target(reference), **rest}
            elif parts:
                own = {key: item for key, item in schema.items() if key != "allOf"}
                return _merged([own, *(self._resolved(part, left) for part in parts)])
            else:
                return schema
        return {}

    def _target(self, reference: str) -> Schema:
        """Source: RFC 6901, section 6."""
        found: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) and reference.startswith("#") else {}


def _merged(parts: Sequence[Any]) -> Schema:
    whole: dict[str, Any] = {}
    for part in parts:
        for key, item in part.items() if isinstance(part, Mapping) else ():
            held = whole.get(key)
            if isinstance(held, Mapping) and isinstance(item, Mapping):
                whole[key] = {**held, **item}
            elif key in ("required", "allOf") and isinstance(held, list) and isinstance(item, list):
                whole[key] = [*held, *item]
            else:
                whole[key] = item
    return whole


def _branches(schema: Schema) -> Iterator[Any]:
    for keyword in ("anyOf", "oneOf"):
        yield from _list(schema.get(keyword))


def _readings(text: str, kind: str) -> list[Any]:
    """How a text can be read as a value of a type: in one way or in none."""
    plain = text.strip()
    if kind == "integer" and _INTEGER.fullmatch(plain):
        return [int(plain)]
    if kind == "number" and _NUMBER.fullmatch(plain):
        number = int(plain) if _INTEGER.fullmatch(plain) else float(plain)
        return [] if number in (float("inf"), float("-inf")) else [number]
    if kind == "boolean" and plain.lower() in _BOOLEANS:
        return [_BOOLEANS[plain.lower()]]
    if kind == "null" and plain in ("null", "None"):
        return [None]
    if kind in ("array", "object") and plain[:1] in ("[", "{"):
        for read in (json_value, python_value):
            try:
                value = read_whole(plain, read)
            except BrokenError:
                continue
            return [value] if _type(value) == kind else []
    return []


def _type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _fits(value: Any, types: Sequence[str]) -> bool:
    kind = _type(value)
    is_whole = kind == "number" and float(value).is_integer()
    return kind in types or (kind == "integer" and "number" in types) or (is_whole and "integer" in types)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."
