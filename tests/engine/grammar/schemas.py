"""JSON schemas of the kinds that people send: outputs held to each of them validate against it."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string", "maxLength": 12}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 999}

_TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": _COUNT,
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}

_LINKED_LIST = {
    "type": "object",
    "properties": {"head": _COUNT, "tail": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["head", "tail"],
    "additionalProperties": False,
}

_EXPRESSION = {
    "$defs": {
        "number": {"type": "number", "minimum": -10, "maximum": 10},
        "sum": {
            "type": "object",
            "properties": {
                "op": {"enum": ["+", "-", "×"]},
                "left": {"$ref": "#/$defs/expression"},
                "right": {"$ref": "#/$defs/number"},
            },
            "required": ["op", "left", "right"],
            "additionalProperties": False,
        },
        "expression": {"anyOf": [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/sum"}]},
    },
    "$ref": "#/$defs/expression",
}

_PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20, "description": "as on the passport"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}], "default": None},
        "tags": {"type": "array", "items": _TEXT, "maxItems": 3, "uniqueItems": False},
    },
    "required": ["name", "age", "email"],
    "additionalProperties": False,
}

_SHAPES = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}},
            "required": ["kind", "radius"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "kind": {"const": "box"},
                "sides": {"type": "array", "minItems": 3, "maxItems": 3},
            },
            "required": ["kind", "sides"],
            "additionalProperties": False,
        },
    ]
}

_TOOL_CALL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["get_weather", "search", "überweisung"]},
        "parameters": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
    },
    "required": ["name", "parameters"],
    "additionalProperties": False,
}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "anything": {},
    "any object": {"type": "object"},
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "integer between": {"type": "integer", "minimum": -17, "maximum": 42},
    "integer beyond": {"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 1001},
    "number between": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "number beyond": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "text": {"type": "string"},
    "short text": {"type": "string", "maxLength": 3},
    "long text": {"type": "string", "minLength": 30, "maxLength": 60},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}(/[a-z]+)?$"},
    "pattern inside": {"type": "string", "pattern": "a[bc]+d", "maxLength": 20},
    "unicode pattern": {"type": "string", "pattern": "^[äöüß]{1,4}€$"},
    "pattern and length": {"type": "string", "pattern": "^[a-z]*$", "minLength": 4, "maxLength": 6},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date and time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "email": {"type": "string", "format": "email"},
    "hostname": {"type": "string", "format": "hostname", "maxLength": 30},
    "uri": {"type": "string", "format": "uri", "maxLength": 40},
    "enum of texts": {"enum": ["red", "green", "blue", "grün", '"quoted"', "two\nlines", "back\\slash"]},
    "enum of everything": {"enum": [1, -2.5, "three", True, None, [1, 2], {"a": {"b": "c"}}]},
    "const object": {"const": {"version": 2, "name": "köln", "list": [1, "x", None]}},
    "types": {"type": ["string", "integer", "null"], "maxLength": 5, "maximum": 9, "minimum": 0},
    "no type": {"minLength": 2, "minimum": 3, "maxItems": 1, "maxProperties": 1},
    "list": {"type": "array", "items": _COUNT},
    "list of 2 to 4": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [_TEXT, _COUNT], "items": False, "minItems": 2},
    "tuple and more": {
        "type": "array",
        "prefixItems": [_TEXT],
        "items": _COUNT,
        "minItems": 1,
        "maxItems": 4,
    },
    "draft 7 tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [_TEXT, _COUNT],
        "additionalItems": False,
        "minItems": 2,
    },
    "nested lists": {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "array", "items": _COUNT, "maxItems": 2}},
    },
    "person": _PERSON,
    "optional properties": {"type": "object", "properties": {"a": _COUNT, "b": _TEXT, "c": {}}},
    "free names": {"type": "object", "additionalProperties": _COUNT, "maxProperties": 3},
    "named and free": {"type": "object", "properties": {"id": _COUNT}, "additionalProperties": _TEXT},
    "pattern names": {
        "type": "object",
        "patternProperties": {"^x-": _TEXT, "^[0-9]+$": _COUNT},
        "additionalProperties": False,
    },
    "required but not described": {"type": "object", "required": ["must"], "additionalProperties": _COUNT},
    "unicode names": _object(
        **{"größe": _COUNT, "名前": _TEXT, "emoji 🦙": {"type": "boolean"}, 'q"uote': _TEXT}
    ),
    "nested objects": _object(a=_object(b=_object(c=_object(d=_TEXT)))),
    "nullable": _object(maybe={"anyOf": [_TEXT, {"type": "null"}]}, other={"type": ["number", "null"]}),
    "union": {"anyOf": [_COUNT, _object(error=_TEXT), {"type": "array", "items": _TEXT, "maxItems": 2}]},
    "tagged union": _SHAPES,
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": _COUNT}, "required": ["a"]},
            {"type": "object", "properties": {"b": _TEXT}, "required": ["b"]},
        ]
    },
    "reference": {
        "$defs": {"a/b c": _object(x=_COUNT)},
        "type": "array",
        "items": {"$ref": "#/$defs/a~1b%20c"},
    },
    "reference and more": {
        "$defs": {"base": {"type": "object", "properties": {"id": _COUNT}, "required": ["id"]}},
        "$ref": "#/$defs/base",
        "properties": {"name": _TEXT},
        "required": ["name"],
    },
    "definitions": {"definitions": {"n": _COUNT}, "type": "array", "items": {"$ref": "#/definitions/n"}},
    "tree": _TREE,
    "linked list": _LINKED_LIST,
    "expression": _EXPRESSION,
    "tool call": _TOOL_CALL,
    "names of keywords": _object(**{"not": _COUNT, "if": _TEXT, "contains": {"enum": ["uniqueItems"]}}),
    "annotations": {"type": "string", "maxLength": 4, "x-order": 3, "examples": ["a"], "deprecated": True},
}
