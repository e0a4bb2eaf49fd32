"""Checks a JSON schema before it is compiled, and sets how the JSON is written.

llguidance refuses most of what it cannot enforce. Here that is told by place and name, for every draft alike;
and three things are refused that would not be: nesting or references that overflow a stack, schemas that only
an endless value satisfies, and llguidance's own options.

What is enforced differs from the specification of JSON schema in this: properties come in the order of the
schema; `format` is enforced, with a 29 February in any year; names that a schema leaves free may come twice
in an object.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from corral.engine.grammar.endless import that_can_end
from corral.engine.grammar.errors import refusal
from corral.errors import RequestError

# White space between two parts of JSON: llguidance's default has no bound, and a model that has lost its way
# then writes white space to the end. Enough for an indent; and no narrower, since wherever white space must
# stop the parser goes on to all that may follow, which is much work in large schemas.
WHITE_SPACE = r"[ \t\r\n]{1,64}"

_OPTIONS = "x-guidance"

_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")

# What the drafts of JSON schema define and llguidance does not enforce. Keywords that no draft defines say
# nothing about the value, by the specification.
_NOT_ENFORCED = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$recursiveRef",
        "$dynamicRef",
        "contentSchema",
        "disallow",
        "extends",
        "divisibleBy",
    ]
)


def canonical(field: str, schema: Mapping[str, Any] | bool | str) -> str:
    """A schema, given as a mapping or as text, as text that is the same for the same schema.

    The order of keys is kept: it is the order in which the properties come.

    Raises:
        RequestError: it is not JSON, or neither an object nor a boolean.
    """
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping | bool):
            raise refusal(field, f"is {_shortened(value)}; a JSON schema is an object")
        plain = dict(value) if isinstance(value, Mapping) else value
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)
    except RequestError:
        raise
    except RecursionError:
        raise refusal(field, "is nested too deeply") from None
    except (TypeError, ValueError) as error:
        what = str(error).split(";")[0]  # what follows is advice about Python
        raise refusal(field, f"is not JSON: {what}") from None


def checked(field: str, text: str, max_nesting: int, max_depth: int) -> dict[str, Any]:
    """The schema of a canonical text, with the options that llguidance is to compile it with.

    Args:
        field: what the messages call it.
        max_nesting: levels of JSON.
        max_depth: levels of schemas in schemas, going through references.

    Raises:
        RequestError: a limit is passed, a keyword is not enforced, or a reference leads nowhere.
    """
    schema = json.loads(text)
    if schema is False:
        raise refusal(field, "cannot match anything: the schema is false")
    if schema is True:
        schema = {}
    if _levels(schema) > max_nesting:
        raise refusal(field, f"is nested deeper than {max_nesting} levels")
    if _OPTIONS in schema:
        raise refusal(field, f"has {_OPTIONS}, which Corral sets itself; remove it")
    _check_endings(field, schema, _check_keywords(field, schema, max_depth))
    return {**schema, _OPTIONS: {"whitespace_pattern": WHITE_SPACE, "lenient": False, "coerce_one_of": False}}


def _check_keywords(field: str, root: dict[str, Any], max_depth: int) -> dict[str, Any]:
    """Goes through all schemas that the root needs, as a compiler would. Gives those that are referred to."""
    referred: dict[str, Any] = {}
    waiting: list[tuple[Any, str, int]] = [(root, "#", 1)]
    while waiting:
        schema, place, depth = waiting.pop()
        if not isinstance(schema, dict):
            continue
        if depth > max_depth:
            raise refusal(field, f"has more than {max_depth} schemas inside each other, at {place}")
        if schema.get("uniqueItems") is False:
            del schema["uniqueItems"]
        for keyword in schema:
            if keyword in _NOT_ENFORCED:
                raise refusal(field, f"uses {keyword!r} at {place}, which cannot be enforced; remove it")
        inner = [(child, f"{place}/{name}", depth + 1) for name, child in _inner(schema)]
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in referred:
            target = _target(field, root, reference)
            if target is not None:
                referred[reference] = target
                inner.append((target, reference, depth + 1))
        waiting.extend(reversed(inner))
    return referred


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _MAPS and isinstance(value, dict):
            yield from ((f"{keyword}/{name}", child) for name, child in value.items())
        elif keyword in (*_LISTS, *_SINGLE) and isinstance(value, list):
            yield from ((f"{keyword}/{i}", child) for i, child in enumerate(value))
        elif keyword in _SINGLE:
            yield keyword, value


def _target(field: str, root: dict[str, Any], reference: str) -> Any:
    """What a reference points to; None where that is for llguidance to find: by anchor or by id.

    Source: RFC 6901, section 6: a JSON pointer as a URI fragment.
    """
    if reference in ("#", "#/"):
        return root
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for part in unquote(reference[2:]).split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise refusal(field, f"has a $ref to {_shortened(reference)}, which is not in the schema")
    return found


def _check_endings(field: str, root: dict[str, Any], referred: dict[str, Any]) -> None:
    """Refuses a schema such as an object that must hold another of its own kind."""
    schemas = {"": root, **referred}
    last_first = list(reversed(schemas))  # what is referred to last is most often what others need first
    ending = that_can_end(last_first, _Endings(schemas).can_end)
    if "" not in ending:
        endless = next((name for name in last_first if name and name not in ending), "#")
        raise refusal(field, f"cannot match anything that ends: {endless} needs itself again and again")


class _Endings:
    """Whether some finite value fits a schema, as far as nesting decides it."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self._schemas = schemas
        self._known: dict[int, bool | int] = {}  # True, or how many schemas could end when this could not

    def can_end(self, name: str, ending: Collection[str]) -> bool:
        return self._ends(self._schemas[name], ending)

    def _ends(self, schema: Any, ending: Collection[str]) -> bool:
        if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
            return True
        known = self._known.get(id(schema))
        if known is True or (known is not None and known == len(ending)):
            return known is True
        ends = self._find(schema, ending)
        self._known[id(schema)] = ends or len(ending)
        return ends

    def _find(self, schema: dict[str, Any], ending: Collection[str]) -> bool:
        def ends(child: Any) -> bool:
            return self._ends(child, ending)

        reference = schema.get("$ref")
        if isinstance(reference, str) and reference in self._schemas and reference not in ending:
            return False
        if not all(map(ends, _list(schema.get("allOf")))):
            return False
        for options in (_list(schema.get("anyOf")), _list(schema.get("oneOf"))):
            if options and not any(map(ends, options)):
                return False
        types = schema.get("type")
        kinds = {types} if isinstance(types, str) else set(map(str, _list(types)))
        if not kinds or kinds - {"object", "array"}:
            return True
        needed = {"object": _needed_properties, "array": _needed_items}
        return any(all(map(ends, needed[kind](schema))) for kind in kinds)


def _needed_properties(schema: dict[str, Any]) -> list[Any]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    names = [name for name in _list(schema.get("required")) if isinstance(name, str)]
    free = {} if schema.get("patternProperties") else schema.get("additionalProperties")
    return [known.get(name, free) for name in names]


def _needed_items(schema: dict[str, Any]) -> list[Any]:
    least = schema.get("minItems")
    if not isinstance(least, int) or least < 1:
        return []
    items = schema.get("items")
    first = _list(items) or _list(schema.get("prefixItems"))
    rest = [] if isinstance(items, list) or len(first) >= least else [items]
    return [*first[:least], *rest]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _levels(value: Any) -> int:
    levels, row = 0, [value]
    while row:
        levels += 1
        row = [
            child
            for one in row
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
    return levels


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
