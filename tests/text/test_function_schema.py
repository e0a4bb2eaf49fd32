"""Function schemas against transformers.utils.get_json_schema."""

# ruff: noqa: ARG001 - the functions are never called

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Optional, Union

import pytest
from transformers.utils import get_json_schema

from corral.errors import RenderError
from corral.text.function_schema import as_tools, function_schema


class Unit(Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Mixed(Enum):
    ONE = 1
    TWO = "two"
    NONE = None


def simple(city: str, days: int, share: float, verbose: bool) -> None:
    """Get the weather.

    Args:
        city: The city.
        days: How many days.
        share: A share.
        verbose: Whether to say more.
    """


def defaults(city: str, unit: str = "celsius", limit: Optional[int] = None) -> dict[str, Any]:  # noqa: UP045
    """
    Get the weather of a city,
    in two lines.

    With a second paragraph.

    Args:
        city: The name of the city,
            which may be long, and
            goes on here.
        unit: The unit. (choices: ["celsius", " fahrenheit "])
        limit: At most: so many.

    Returns:
        The weather,
        as an object.

    Raises:
        ValueError: never
    """
    return {}


def containers(
    a: list,  # type: ignore[type-arg]
    b: list[int],
    c: dict,  # type: ignore[type-arg]
    d: dict[str, float],
    e: tuple[int, str],
    f: list[dict[str, list[bool]]],
) -> list[str]:
    """Takes containers.

    Args:
        a: bare list
        b: list of integers
        c: bare object
        d: object of numbers
        e: a pair
        f: nested
    """
    return []


def unions(
    a: int | str,
    b: Union[int, float, None],  # noqa: UP007
    c: list[int] | str,
    d: Literal["x", "y"] | None,
    e: str | None = None,
    f: Any = None,
) -> int | None:
    """Takes unions.

    Args:
        a: one of two
        b: a number or nothing
        c: a list or a text
        d: a choice or nothing
        e: a text or nothing
        f: anything
    """
    return None


def choices(a: Literal["x", "y"], b: Literal[1, "z", None], c: Unit, d: Mixed, e: Unit | int) -> Unit:
    """Takes choices.

    Args:
        a: of texts
        b: of several types
        c: of an enumeration
        d: of a mixed enumeration
        e: of an enumeration, or a number
    """
    return Unit.CELSIUS


def no_arguments() -> str:
    """Tells the time."""
    return ""


def odd_return(x: int) -> Callable[[], int]:
    """Has a return type without a schema.

    Args:
        x: A number with "quotes" and a colon: here

    Returns:
        A function.
    """
    return lambda: x


class Shop:
    def buy(self, item: str, count: int = 1) -> bool:
        """Buy an item.

        Args:
            item: What to buy
            count: How many
        """
        return bool(item and count)


FUNCTIONS = [simple, defaults, containers, unions, choices, no_arguments, odd_return, Shop().buy, Shop.buy]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_the_schema_is_that_of_transformers(function: Callable[..., Any]) -> None:
    # As text, because prompts are made of it: the order of keys counts.
    assert json.dumps(function_schema(function)) == json.dumps(get_json_schema(function))


def test_types_in_the_docstring_are_understood() -> None:
    def search(query: str) -> None:
        """Search.

        Args:
            query (str): What to search for
        """

    described = function_schema(search)["function"]["parameters"]["properties"]["query"]
    assert described == {"type": "string", "description": "What to search for"}


def test_tools_may_be_functions_or_schemas_in_two_forms() -> None:
    bare = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    wrapped = {"type": "function", "function": bare, "strict": True}
    assert as_tools([bare, wrapped, no_arguments]) == [
        {"type": "function", "function": bare},
        wrapped,
        function_schema(no_arguments),
    ]


def undocumented(x: int) -> int:
    return x


def half_documented(x: int, y: int) -> int:
    """Adds.

    Args:
        x: A number.
    """
    return x + y


def untyped(x):  # type: ignore[no-untyped-def]
    """Takes anything.

    Args:
        x: Anything.
    """


def of_a_class(x: Shop) -> None:
    """Takes a shop.

    Args:
        x: A shop.
    """


def variable(*x: int) -> None:
    """Takes numbers.

    Args:
        x: Numbers.
    """


def any_length(x: tuple[int, ...]) -> None:
    """Takes numbers.

    Args:
        x: Numbers.
    """


def bad_choices(x: str) -> None:
    """Takes a choice.

    Args:
        x: A choice (choices: a, b)
    """


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (undocumented, "the tool undocumented has no docstring"),
        (half_documented, "the tool half_documented does not describe its parameter y"),
        (untyped, "the tool untyped, parameter x: it has no type hint"),
        (of_a_class, "the tool of_a_class, parameter x: the type .*Shop.* has no JSON schema"),
        (variable, "the tool variable, parameter x: a variable number of arguments"),
        (any_length, "the tool any_length, parameter x: a tuple needs a fixed length"),
        (bad_choices, "the tool bad_choices, parameter x: the choices must be a JSON list"),
        ({"description": "nameless"}, r"tools\[0\] has no name"),
        ({"type": "function", "function": "f"}, r"tools\[0\].function must be an object"),
        ({"type": "web_search", "function": {"name": "f"}}, r"tools\[0\].type is 'web_search'"),
        ({"name": "f", "parameters": []}, None),
        ({"name": "f", "parameters": [1]}, r"tools\[0\] \(f\): parameters must be an object"),
        (3, r"tools\[0\] must be a function or a JSON schema, not int"),
    ],
)
def test_a_tool_without_a_schema_is_refused(tool: Any, words: str | None) -> None:
    if words is None:
        assert as_tools([tool])
        return
    with pytest.raises(RenderError, match=words):
        as_tools([tool])
