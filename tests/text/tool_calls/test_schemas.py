"""Arguments against the schema of their tool: what is converted, and what is reported."""

from __future__ import annotations

from typing import Any

import pytest

from corral.text.tool_calls.schemas import ParameterSchemas

INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
POINT = {"type": "object", "properties": {"x": INTEGER}, "required": ["x"], "additionalProperties": False}
CIRCLE = {"type": "object", "properties": {"r": {"type": "number"}}, "required": ["r"]}


def convert(schema: dict[str, Any], value: Any, **definitions: Any) -> tuple[Any, list[str]]:
    """What becomes of an argument `a`, and what is noted."""
    notes: list[str] = []
    root = {"type": "object", "properties": {"a": schema}, "$defs": definitions}
    return ParameterSchemas(root).converted("a", value, notes), notes


@pytest.mark.parametrize(
    ("schema", "value", "converted"),
    [
        (INTEGER, " 12 ", 12),
        (INTEGER, "+3", 3),
        ({"type": "number"}, "3", 3),
        ({"type": "number"}, "-1.5e3", -1500.0),
        ({"type": "boolean"}, "FALSE", False),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": "integer", "nullable": True}, "None", None),
        ({"type": "array"}, "['a', 'b']", ["a", "b"]),
        ({"type": "object"}, '{"k": [1]}', {"k": [1]}),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": 1}, "1", 1),
        ({"anyOf": [INTEGER, {"type": "boolean"}]}, "true", True),
        ({"oneOf": [{"type": "array", "items": INTEGER}, {"type": "null"}]}, "[1]", [1]),
        ({"allOf": [{"$ref": "#/$defs/n"}]}, "7", 7),
        ({"allOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/positive"}]}, "7", 7),
        ({"$ref": "#/$defs/n"}, "7", 7),
        ({"$ref": "#/$defs/list"}, ["1", 2], [1, 2]),
        ({"prefixItems": [INTEGER, TEXT], "items": {"type": "boolean"}}, ["1", "2", "true"], [1, "2", True]),
        ({"type": "object", "additionalProperties": INTEGER}, {"k": "1"}, {"k": 1}),
        ({"anyOf": [CIRCLE, POINT]}, {"x": "1"}, {"x": 1}),
    ],
)
def test_text_is_converted_where_there_is_one_way_to_read_it(
    schema: dict[str, Any], value: Any, converted: Any
) -> None:
    integers = {"type": "array", "items": {"$ref": "#/$defs/n"}}
    found, notes = convert(schema, value, n=INTEGER, positive={"minimum": 1}, list=integers)
    assert (type(found), found) == (type(converted), converted)
    assert notes
    assert all("was read as" in note for note in notes)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "1"),
        (TEXT, "1"),
        ({"type": ["string", "integer"]}, "1"),
        ({"anyOf": [INTEGER, TEXT]}, "1"),
        ({"enum": ["1", 1]}, "1"),
        ({"description": "anything"}, "[1]"),
        ({"type": "string", "nullable": True}, "null"),
        ({"$ref": "#/$defs/nowhere"}, "1"),
        ({"$ref": "#/$defs/loop"}, "1"),
        ({"$ref": "other.json"}, "1"),
        (INTEGER, 1.0),
        ({"type": "number"}, 1),
        ({"type": "array", "items": {}}, ["1"]),
    ],
)
def test_what_fits_as_it_is_stays(schema: dict[str, Any], value: Any) -> None:
    assert convert(schema, value, loop={"$ref": "#/$defs/loop"}) == (value, [])


@pytest.mark.parametrize(
    ("schema", "value", "note"),
    [
        (INTEGER, "1.0", 'a is "1.0", but must be integer'),
        (INTEGER, "1" * 300, "but must be integer"),
        (INTEGER, 1.5, "a is 1.5, but must be integer"),
        (INTEGER, True, "a is true, but must be integer"),
        (TEXT, None, "a is null, but must be string"),
        ({"type": "boolean"}, "yes", 'a is "yes", but must be boolean'),
        ({"type": "array"}, "[1", "but must be array"),
        ({"type": "array"}, '{"a": 1}', "but must be array"),
        ({"type": ["integer", "boolean"]}, "x", "but must be integer or boolean"),
        ({"type": "string", "enum": ["C", "F"]}, "K", 'a is "K", which is not one of ["C", "F"]'),
        (POINT, {"y": 1}, "a.x is required, but missing"),
        (POINT, {"x": 1, "y": 1}, "a.y is not among the properties"),
        ({"type": "array", "items": POINT}, [{"x": "z"}], 'a[0].x is "z", but must be integer'),
    ],
)
def test_what_does_not_fit_stays_and_is_reported(schema: dict[str, Any], value: Any, note: str) -> None:
    found, notes = convert(schema, value)
    assert found == value
    assert any(note in one for one in notes), notes


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_a_schema_that_leads_to_itself_says_nothing(keyword: str) -> None:
    schema = {"$ref": "#/$defs/loop"}
    found, notes = convert(schema, ["1"], loop={keyword: [{"$ref": "#/$defs/loop"} for _ in range(20)]})
    assert found == ["1"]
    assert notes == []


def test_missing_and_unknown_arguments_are_reported() -> None:
    def notes(arguments: dict[str, Any], **schema: Any) -> list[str]:
        found: list[str] = []
        root = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], **schema}
        ParameterSchemas(root).check(arguments, found)
        return found

    assert notes({"a": 1}) == []
    assert notes({"b": 1}) == ["a is required, but missing", "b is not among the parameters"]
    assert notes({"a": 1, "b": 1}, additionalProperties=True) == []
    assert notes({"a": 1, "b": 1}, patternProperties={"b": {}}) == []
    everything: list[str] = []
    ParameterSchemas({}).check({"a": 1}, everything)
    assert everything == []


@pytest.mark.parametrize(
    "schema",
    [{"properties": 1, "required": "a"}, {"$ref": 1}, {"properties": {"a": 1}}, {"allOf": [1], "anyOf": [2]}],
)
def test_a_schema_that_is_none_says_nothing(schema: dict[str, Any]) -> None:
    assert ParameterSchemas(schema).converted("a", "1", []) == "1"
