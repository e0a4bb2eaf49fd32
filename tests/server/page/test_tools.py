"""The page's own tools: bounded, and nothing but arithmetic and the clock."""

from __future__ import annotations

import json
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.server.page.tools import ToolError, calculate, declared_tools, run_own_tool

WEATHER = '{"name": "get_weather", "parameters": {"type": "object", "properties": {}}}'


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(17.5 + 4) * 12 / 3", "86.0"),
        ("2^10", "1024"),
        ("-7 // 2", "-4"),
        ("7 × 6 − 2", "40"),
        ("sqrt(2) * sqrt(2)", repr(math.sqrt(2) ** 2)),
        ("max(1, 2, 3) + min(4, 5)", "7"),
        ("round(2.567, 2)", "2.57"),
        ("factorial(20)", str(math.factorial(20))),
        ("cos(pi)", "-1.0"),
    ],
)
def test_arithmetic_has_its_value(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('id')",
        "().__class__",
        "open('/etc/passwd').read()",
        "[x for x in range(9)]",
        "(lambda: 1)()",
        "'a' * 9",
        "True + 1",
        "1 if 1 else 2",
        "sqrt.__self__",
        "max(*[1, 2])",
        "print(1)",
        "1; 2",
        "",
        "(" * 250,
    ],
)
def test_what_is_not_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(ToolError):
        calculate(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "2**2**2**2**2**2",
        "(10**1000)**(10**1000)",
        "factorial(10**6)",
        "factorial(factorial(100))",
        "round(5, -10**9)",
        "1/0",
        "(-8)**0.5",
        "exp(1000)",
        "9" * 400,
        "*".join(["(10**300)"] * 20),
    ],
)
def test_what_is_too_large_or_has_no_value_is_refused_at_once(expression: str) -> None:
    with pytest.raises(ToolError):
        calculate(expression)


@given(st.text(alphabet="0123456789.+-*/%()^ ,esqrtfacoilpund", max_size=60))
def test_any_expression_has_a_value_or_is_refused(expression: str) -> None:
    with suppress(ToolError):
        assert calculate(expression)


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ('{"expression": "1 + 1"}', "2"),
        ('{"expression": 5}', "5"),
        ("{}", "Error: the argument expression is missing"),
        ("[1]", "Error: the arguments must be an object"),
        ("{", "Error: the arguments are not JSON"),
        ('{"expression": null}', "Error: the argument expression is not one of expression, as text"),
        ('{"expression": "1/0"}', "Error: division by zero"),
    ],
)
def test_a_call_always_has_a_result(arguments: str, result: str) -> None:
    assert run_own_tool("calculator", arguments) == result


def test_the_clock_knows_time_zones_and_refuses_paths() -> None:
    assert "UTC" in str(run_own_tool("current_time", '{"timezone": "UTC"}'))
    for zone in ("Nowhere/Town", "../../etc/passwd", "/etc/passwd"):
        result = run_own_tool("current_time", json.dumps({"timezone": zone}))
        assert str(result).startswith("Error: there is no time zone")


def test_other_tools_are_not_run() -> None:
    assert run_own_tool("get_weather", "{}") is None


def test_own_and_custom_tools_are_declared_in_one_form() -> None:
    names = [tool["function"]["name"] for tool in declared_tools(["calculator"], f"[{WEATHER}]")]
    assert names == ["calculator", "get_weather"]
    whole = f'{{"type": "function", "function": {WEATHER}}}'
    assert declared_tools([], whole) == declared_tools([], WEATHER)


@pytest.mark.parametrize(
    ("custom", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "list of objects"),
        ("[{}]", '"name"'),
        (f"[{WEATHER}, {WEATHER}]", "Two tools are called get_weather"),
    ],
)
def test_custom_tools_that_are_none_are_refused_in_words(custom: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        declared_tools([], custom)
