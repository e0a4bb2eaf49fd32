"""The tools that the page itself runs, and those whose results a person types in.

The page's own tools are safe by construction: the clock, and a calculator that evaluates a parsed expression
within bounds.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

MAX_EXPRESSION = 300  # characters
MAX_BITS = 4096  # of an integer on the way

Number = int | float


class ToolError(ValueError):
    """Arguments that a tool cannot work with. The model gets to read the message."""


def _power(base: Number, exponent: Number) -> Number:
    whole = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1
    if whole and max(exponent, 0) * int(base).bit_length() > MAX_BITS:
        raise ToolError("the result is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ToolError("the result is not a real number")
    return result


def _factorial(value: Number) -> int:
    if not isinstance(value, int) or not 0 <= value <= 400:
        raise ToolError("factorial takes a whole number from 0 to 400")
    return math.factorial(value)


def _round(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > 20:
        raise ToolError("round takes a whole number of digits from -20 to 20")
    return round(value, digits) if digits else round(value)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "round": _round,
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "floor": math.floor,
    "ceil": math.ceil,
    "factorial": _factorial,
}
_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, as text.

    Raises:
        ToolError: it is too long, too large on the way, or has anything in it but arithmetic.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ToolError(f"the expression has more than {MAX_EXPRESSION} characters")
    source = expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/").replace("−", "-")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a model's odd spelling, nobody needs to hear
            return repr(_value(ast.parse(source, mode="eval").body))
    except ToolError:
        raise
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(f"this has no value: {error}") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ToolError("this is not an arithmetic expression") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*[_value(argument) for argument in arguments]))
    raise ToolError("only numbers, + - * / // % **, brackets and functions such as sqrt are understood")


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolError("the result is too large")
    return value


def current_time(timezone: str = "") -> str:
    """The date and time, in a time zone or the server's.

    Raises:
        ToolError: there is no such time zone.
    """
    try:
        now = datetime.now(ZoneInfo(timezone)) if timezone else datetime.now().astimezone()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(f"there is no time zone {timezone!r}; an example of one is Europe/Zurich") from None
    return now.strftime("%A, %-d %B %Y, %H:%M:%S %Z")


def _function(
    name: str, description: str, parameters: Mapping[str, Any], required: list[str]
) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


_OWN: dict[str, tuple[Callable[..., str], dict[str, Any]]] = {
    "calculator": (
        calculate,
        _function(
            "calculator",
            "Evaluate an arithmetic expression.",
            {"expression": {"type": "string", "description": "for example (17.5 + 4) * 12 / 3"}},
            ["expression"],
        ),
    ),
    "current_time": (
        current_time,
        _function(
            "current_time",
            "The current date and time.",
            {"timezone": {"type": "string", "description": "an IANA name such as Europe/Zurich"}},
            [],
        ),
    ),
}
OWN_TOOLS: dict[str, str] = {"calculator": "Calculator", "current_time": "Date and time"}


def run_own_tool(name: str, arguments: str) -> str | None:
    """The result of one of the page's own tools, or None if it is not one of them. Errors are results too."""
    if name not in _OWN:
        return None
    function, declared = _OWN[name]
    schema = declared["function"]["parameters"]
    try:
        given = json.loads(arguments or "{}")
        if not isinstance(given, dict):
            raise ToolError("the arguments must be an object")
        for key, value in given.items():
            if key not in schema["properties"] or not isinstance(value, str | int | float):
                raise ToolError(
                    f"the argument {key} is not one of {', '.join(schema['properties'])}, as text"
                )
        for key in schema["required"]:
            if key not in given:
                raise ToolError(f"the argument {key} is missing")
        return function(**{key: str(value) for key, value in given.items()})
    except (ToolError, RecursionError) as error:
        return f"Error: {error}"
    except ValueError:
        return "Error: the arguments are not JSON"


def declared_tools(own: list[str], custom: str) -> list[dict[str, Any]]:
    """The tools to declare to the model: those of the page that are switched on, then a person's own.

    Raises:
        ValueError: `custom` is not a JSON list of tools; the message says why.
    """
    tools = [_OWN[name][1] for name in own if name in _OWN]
    if not custom.strip():
        return tools
    try:
        found = json.loads(custom)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Your own tools are not JSON: {error}.") from None
    tools += [_custom_tool(entry) for entry in (found if isinstance(found, list) else [found])]
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"Two tools are called {twice}: rename one of them.")
    return tools


def _custom_tool(entry: Any) -> dict[str, Any]:
    """A tool in OpenAI's form, or its bare function."""
    if not isinstance(entry, dict):
        raise ValueError("Your own tools must be a JSON list of objects.")
    function = entry.get("function", entry)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError('Each of your own tools needs a "name", and "parameters" as a JSON schema.')
    return {"type": "function", "function": function}
