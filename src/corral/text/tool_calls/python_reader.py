"""Literals and arguments in Python's syntax, which are read and never run.

Accepted are what JSON can hold: strings of all kinds but bytes and f-strings, numbers but complex ones, True,
False, None (and JSON's true, false, null), lists, tuples, dictionaries with text as keys. Source: the Python
language reference, lexical analysis.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from corral.text.tool_calls.json_reader import REPLACEMENT, Emit, hexadecimal
from corral.text.tool_calls.reader import (
    MAX_NESTING,
    BrokenError,
    Reader,
    Steps,
    UnfinishedError,
    unexpected,
)

QUOTES = ("'", '"')

_ESCAPES: Mapping[str, str] = MappingProxyType(
    {"\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r"}
    | {"t": "\t", "v": "\v", "\n": ""}
)
_CODE_DIGITS: Mapping[str, int] = MappingProxyType({"x": 2, "u": 4, "U": 8})
_WORDS: Mapping[str, Any] = MappingProxyType(
    {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
)
_INTEGER = re.compile(r"(0|[1-9](_?[0-9])*|0[xX](_?[0-9a-fA-F])+|0[oO](_?[0-7])+|0[bB](_?[01])+)")
_FLOAT = re.compile(r"(?=.*[.eE])([0-9](_?[0-9])*\.?([0-9](_?[0-9])*)?|\.[0-9](_?[0-9])*)([eE][+-]?[0-9]+)?")
_MAX_NAME = 100


def python_value(reader: Reader, depth: int = 0) -> Steps[Any]:
    """A literal.

    Raises:
        BrokenError: it is none, or has no form in JSON.
    """
    if depth > MAX_NESTING:
        raise BrokenError(f"the value is nested deeper than {MAX_NESTING} levels")
    character = yield from reader.skip_space()
    if character in QUOTES:
        return (yield from python_text(reader))
    if character in ("[", "("):
        reader.take()
        return (yield from _list(reader, character, depth))
    if character == "{":
        reader.take()
        return (yield from _dictionary(reader, depth))
    return (yield from _word(reader))


def python_text(reader: Reader, emit: Emit | None = None, *, loose: bool = False) -> Steps[str]:
    """One string or several next to each other, from an opening quote on; `emit` gets them as they come.

    With `loose`, a quote ends the string only where the arguments of a call could go on behind it.

    Raises:
        UnfinishedError: the string does not end.
    """
    text: list[str] = []

    def add(characters: str) -> None:
        text.append(characters)
        if emit is not None:
            emit(characters)

    while True:
        yield from _string(reader, add, raw=False, loose=loose)
        if (yield from reader.skip_space()) not in QUOTES:
            return "".join(text)


def python_name(reader: Reader, more: str = "_") -> Steps[str]:
    """A name; nothing where none stands, and then nothing is read.

    Raises:
        BrokenError: it is too long.
    """
    first = yield from reader.peek()
    return (yield from reader.word(more)) if first.isalpha() or first == "_" else ""


def _string(reader: Reader, add: Emit, *, raw: bool, loose: bool = False) -> Steps[None]:
    quote = yield from reader.next()
    closing = quote
    if (yield from reader.peek()) == quote:
        reader.take()
        if (yield from reader.peek()) != quote:
            return
        reader.take()
        closing = quote * 3
    run = 0  # quotes in a row
    while character := (yield from reader.next()):
        if character == quote:
            run += 1
            if run == len(closing):
                if not loose or (yield from _could_end(reader)):
                    return
                add(quote * run)
                run = 0
            continue
        add(quote * run + ((yield from _escaped(reader, raw)) if character == "\\" else character))
        run = 0
    raise UnfinishedError("the text ends inside a string")


def _could_end(reader: Reader) -> Steps[bool]:
    """Whether the arguments of a call end behind this quote, or go on with another."""
    start = reader.at
    character = yield from reader.skip_space()
    ends = character in ("", ")")
    if character == ",":
        reader.take()
        yield from reader.skip_space()
        ends = bool((yield from python_name(reader))) and (yield from reader.skip_space()) == "="
    reader.at = start
    if ends:
        return True
    reader.notes.append("a quote inside a string is not escaped")
    return False


def _escaped(reader: Reader, raw: bool) -> Steps[str]:
    character = yield from reader.next()
    if not character:
        raise UnfinishedError("the text ends inside a string")
    if raw:
        return "\\" + character
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character in _CODE_DIGITS or character == "N":
        start = reader.at
        try:
            if character == "N":
                return (yield from _named(reader))
            return _character((yield from hexadecimal(reader, _CODE_DIGITS[character])))
        except UnfinishedError:
            raise
        except BrokenError:
            reader.at = start
            reader.notes.append(f"\\{character} does not tell a character")
    if character in "01234567":
        digits = character
        while len(digits) < 3 and (more := (yield from reader.peek())) and more in "01234567":
            reader.take()
            digits += more
        return chr(int(digits, 8))
    return "\\" + character


def _character(code: int) -> str:
    if code > 0x10FFFF:
        raise BrokenError(f"there is no character {code:#x}")
    return REPLACEMENT if 0xD800 <= code < 0xE000 else chr(code)


def _named(reader: Reader) -> Steps[str]:
    name = ""
    if (yield from reader.next()) == "{":
        while (character := (yield from reader.next())) != "}" and len(name) < _MAX_NAME:
            if not character:
                raise UnfinishedError("the text ends inside a string")
            name += character
    try:
        return unicodedata.lookup(name)
    except KeyError:
        raise BrokenError(f"there is no character named {name!r}") from None


def _list(reader: Reader, opening: str, depth: int) -> Steps[Any]:
    """A list, a tuple as a list, or a value in parentheses."""
    closing = "]" if opening == "[" else ")"
    found: list[Any] = []
    comma = True
    while (character := (yield from reader.skip_space())) != closing:
        if not comma:
            raise unexpected(character, f"a comma or {closing}")
        found.append((yield from python_value(reader, depth + 1)))
        comma = yield from _comma(reader)
    reader.take()
    return found[0] if opening == "(" and len(found) == 1 and not comma else found


def _dictionary(reader: Reader, depth: int) -> Steps[dict[str, Any]]:
    found: dict[str, Any] = {}
    comma = True
    while (character := (yield from reader.skip_space())) != "}":
        if not comma:
            raise unexpected(character, "a comma or }")
        if character not in QUOTES:
            raise unexpected(character, "a key that is text")
        key = yield from python_text(reader)
        character = yield from reader.skip_space()
        if character != ":":
            what = "a colon (a set has no form in JSON)" if character in (",", "}") else "a colon"
            raise unexpected(character, what)
        reader.take()
        found[key] = yield from python_value(reader, depth + 1)
        comma = yield from _comma(reader)
    reader.take()
    return found


def _comma(reader: Reader) -> Steps[bool]:
    found = (yield from reader.skip_space()) == ","
    reader.at += found
    return found


def _word(reader: Reader) -> Steps[Any]:
    """A number, or a word that stands for a value."""
    sign = ""
    while (character := (yield from reader.peek())) and character in "+-" and len(sign) < 2:
        reader.take()
        sign += character
        yield from reader.skip_space()
    text = yield from reader.word("_.")
    if text[-1:] in ("e", "E") and text[:1].isdecimal() and not text.lower().startswith("0x"):
        character = yield from reader.peek()
        if character and character in "+-":
            reader.take()
            text += character + (yield from reader.word())
    if not sign and text in _WORDS:
        return _WORDS[text]
    if not sign and text in ("r", "R", "u", "U") and (yield from reader.peek()) in QUOTES:
        parts: list[str] = []
        yield from _string(reader, parts.append, raw=text in "rR")
        return "".join(parts)
    if not text:
        raise unexpected((yield from reader.peek()), "a value")
    number = _number(text)
    return -number if sign.count("-") % 2 else number


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text, 0)
    if not _FLOAT.fullmatch(text):
        raise BrokenError(f"{text!r} is no value")
    number = float(text)
    if number == float("inf"):
        raise BrokenError(f"the number {text} is too large")
    return number


def python_arguments(
    reader: Reader,
    read: Callable[[str], Steps[None]],
    positional: Callable[[], str],
) -> Steps[None]:
    """The arguments of a call, whose opening parenthesis has been read, up to the closing one.

    Args:
        reader: of the text.
        read: reads the value of the argument of a name.
        positional: gives the name of an argument that has none.

    Raises:
        BrokenError: something else stands there.
    """
    comma = True
    while (character := (yield from reader.skip_space())) != ")":
        if not comma:
            raise unexpected(character, "a comma or )")
        start = reader.at
        name = yield from python_name(reader, "_-")
        if not name or (yield from reader.skip_space()) != "=":
            reader.at = start
            name = positional()
        else:
            reader.take()
            yield from reader.skip_space()
        yield from read(name)
        comma = yield from _comma(reader)
    reader.take()
