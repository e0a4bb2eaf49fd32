"""JSON as models write it: RFC 8259, and what they get wrong where only one meaning is possible.

Read leniently, with a note: escapes that JSON does not have, Python's True, False and None, a comma before a
closing bracket. Line breaks may stand in strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from corral.text.tool_calls.reader import MAX_NESTING, BrokenError, Reader, Steps, UnfinishedError, unexpected

Emit = Callable[[str], object]

_ESCAPES: Mapping[str, str] = MappingProxyType(
    {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
)
_WORDS: Mapping[str, Any] = MappingProxyType({"true": True, "false": False, "null": None})
_PYTHON_WORDS: Mapping[str, Any] = MappingProxyType({"True": True, "False": False, "None": None})
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

REPLACEMENT = "\ufffd"


def json_value(reader: Reader, depth: int = 0) -> Steps[Any]:
    """Any value.

    Raises:
        BrokenError: it is no JSON.
    """
    if depth > MAX_NESTING:
        raise BrokenError(f"the value is nested deeper than {MAX_NESTING} levels")
    character = yield from reader.skip_space()
    if character == '"':
        reader.take()
        return (yield from json_text(reader))
    if character == "{":
        reader.take()
        return (yield from _object(reader, depth))
    if character == "[":
        reader.take()
        return (yield from _array(reader, depth))
    return (yield from _word(reader))


def json_key(reader: Reader, first: bool) -> Steps[str | None]:
    """The next key of an object and its colon; None where the object ends.

    Raises:
        BrokenError: there is neither.
    """
    more = yield from _goes_on(reader, "}", first)
    if not more:
        return None
    character = yield from reader.peek()
    if character != '"':
        raise unexpected(character, "a key")
    reader.take()
    key = yield from json_text(reader)
    character = yield from reader.skip_space()
    if character != ":":
        raise unexpected(character, "a colon")
    reader.take()
    return key


def json_text(reader: Reader, emit: Emit | None = None) -> Steps[str]:
    """A string whose opening quote has been read; `emit` gets it as it comes.

    Raises:
        UnfinishedError: it does not end.
    """
    text: list[str] = []
    while True:
        character = yield from reader.next()
        if character == '"':
            return "".join(text)
        if not character:
            raise UnfinishedError("the text ends inside a string")
        if character == "\\":
            character = yield from _escaped(reader)
        text.append(character)
        if emit is not None:
            emit(character)


def json_number(text: str) -> int | float:
    """The number that a text spells.

    Raises:
        BrokenError: it spells none, or one that JSON cannot hold.
    """
    if not _NUMBER.fullmatch(text):
        raise BrokenError(f"{text!r} is no value")
    number: int | float = json.loads(text)
    if number in (float("inf"), float("-inf")):
        raise BrokenError(f"the number {text} is too large")
    return number


def _object(reader: Reader, depth: int) -> Steps[dict[str, Any]]:
    found: dict[str, Any] = {}
    while (key := (yield from json_key(reader, not found))) is not None:
        found[key] = yield from json_value(reader, depth + 1)
    return found


def _array(reader: Reader, depth: int) -> Steps[list[Any]]:
    found: list[Any] = []
    while (yield from _goes_on(reader, "]", not found)):
        found.append((yield from json_value(reader, depth + 1)))
    return found


def _goes_on(reader: Reader, closing: str, first: bool) -> Steps[bool]:
    """Reads a comma or the closing bracket; whether something follows."""
    character = yield from reader.skip_space()
    if not first and character == ",":
        reader.take()
        character = yield from reader.skip_space()
        if character == closing:
            reader.notes.append(f"a comma stands before {closing}")
    elif not first and character != closing:
        raise unexpected(character, f"a comma or {closing}")
    if character == closing:
        reader.take()
        return False
    return True


def _word(reader: Reader) -> Steps[Any]:
    text = yield from reader.word("_+-.")
    if not text:
        raise unexpected((yield from reader.peek()), "a value")
    if text in _WORDS:
        return _WORDS[text]
    if text in _PYTHON_WORDS:
        reader.notes.append(f"{text} is Python's, not JSON's")
        return _PYTHON_WORDS[text]
    return json_number(text)


def _escaped(reader: Reader) -> Steps[str]:
    """What follows a backslash, as the characters that it means."""
    character = yield from reader.next()
    if not character:
        raise UnfinishedError("the text ends inside a string")
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character == "u":
        start = reader.at
        try:
            return (yield from _utf16(reader))
        except UnfinishedError:
            raise
        except BrokenError:
            reader.at = start
    reader.notes.append(f"\\{character} is no escape of JSON")
    return character if character == "'" else "\\" + character


def _utf16(reader: Reader) -> Steps[str]:
    """The hexadecimal digits behind `\\u`, and of a second escape where the two are a surrogate pair."""
    high = yield from hexadecimal(reader, 4)
    if not 0xD800 <= high < 0xE000:
        return chr(high)
    start = reader.at
    if high < 0xDC00 and (yield from reader.one_of(("\\u",))):
        low = yield from hexadecimal(reader, 4)
        if 0xDC00 <= low < 0xE000:
            return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    reader.at = start
    reader.notes.append(f"\\u{high:04x} is half of a character")
    return REPLACEMENT


def hexadecimal(reader: Reader, digits: int) -> Steps[int]:
    """The number that so many hexadecimal digits spell.

    Raises:
        BrokenError: there are fewer.
    """
    text = ""
    for _ in range(digits):
        character = yield from reader.next()
        if not character or character not in "0123456789abcdefABCDEF":
            raise unexpected(character, "a hexadecimal digit")
        text += character
    return int(text, 16)
