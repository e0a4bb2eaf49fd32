"""Checks of single values: each refusal names the field."""

from __future__ import annotations

import math
import sys
from typing import Any

from corral.errors import RequestError


def require_number(
    name: str, value: Any, *, low: float, high: float = math.inf, low_open: bool = False
) -> None:
    """Raises RequestError unless the value is a finite number within the bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # nor an int that no float can hold
        raise RequestError(f"{name} is {value!r}; it must be a number")
    if value < low or value > high or (low_open and value == low):
        above = f"greater than {low:g}" if low_open else f"at least {low:g}"
        upto = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(f"{name} is {value}; it must be {above}{upto}")


def require_whole(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    """Raises RequestError unless the value is a whole number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} is {value!r}; it must be a whole number")
    if value < low or (high is not None and value > high):
        upto = "" if high is None else f" and at most {high}"
        raise RequestError(f"{name} is {value}; it must be at least {low}{upto}")


def require_flag(name: str, value: Any) -> None:
    """Raises RequestError unless the value is True or False."""
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}; it must be True or False")
