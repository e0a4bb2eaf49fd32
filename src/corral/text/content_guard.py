"""Keeps content from becoming control tokens inside a rendered chat template.

A template gives one string, in which its own control tokens and those that content merely spells look the
same. So before rendering, a nonce is put inside whatever content spells of a control token; after the text
has been cut at the control tokens that are left, which are the template's own, the nonce is taken out again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import count
from typing import Any

from corral.errors import RenderError
from corral.text.messages import ROLES

# Code points that are assigned to no character and never will be: rare in any text, and no white space.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

# The keys that templates look up are no content, whatever control token they may be a part of.
_KEYS = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments"}
) | {"description", "parameters", "properties", "required", "items", "enum", "default", "return"}
_TYPES = frozenset({"function", "object", "array", "string", "number", "integer", "boolean", "null", "text"})


class ControlNames:
    """What of a tokenizer's control tokens a text can spell, regardless of case."""

    def __init__(self, names: Collection[str]) -> None:
        folded = {name.lower() for name in names if name}
        self.longest = max(map(len, folded), default=0)
        self._suffixes = {name[-n:] for name in folded for n in range(1, len(name))}
        self._joined = "\0".join(folded)
        anywhere = "|".join(map(re.escape, sorted(folded, key=len, reverse=True))) or "(?!)"
        firsts = re.escape("".join(sorted({name[0] for name in folded})))
        first = f"[{firsts}]" if firsts else "(?!)"
        self.starts = re.compile(f"(?={first})(?={anywhere}){first}", re.IGNORECASE)
        self.first_characters = re.compile(first, re.IGNORECASE)

    def may_go_on_in(self, text: str) -> bool:
        """Whether a control token that begins before a text could end in it, or go through all of it."""
        head = text[: self.longest].lower()
        ends = any(head[:n] in self._suffixes for n in range(1, len(head) + 1))
        return ends or (0 < len(text.rstrip()) <= self.longest and text.rstrip().lower() in self._joined)


class ContentGuard:
    """Guards the variables of one rendering.

    Attributes:
        marks: two strings, absent from all content, to mark a span of the rendered text with.
        cut: another one, to mark a position with.
    """

    def __init__(self, names: ControlNames, variables: Any) -> None:
        self._names = names
        self._nonce, start, end, self.cut = _absent_strings(list(_strings(variables, "")), 4)
        self.marks = (start, end)
        self._traces = re.compile(_traces(self._nonce))

    def protect(self, value: Any, *, strictly: bool = False) -> Any:
        """A copy of some variables in which no text spells a control token.

        `strictly` also breaks what might become one where the template joins texts or parts of them;
        templates may then no longer recognise the tags that they look for.
        """
        return self._mapped(value, self._protect_strictly if strictly else self._protect_text)

    def restore(self, text: str) -> str:
        """Text of a rendered template without the nonce, however the template has escaped it."""
        return self._traces.sub("", text)

    def _protect_text(self, text: str) -> str:
        return self._broken(text, self._names.starts)

    def _protect_strictly(self, text: str) -> str:
        """A control token that is joined of several texts begins in this one, or goes through its start."""
        bare = text.lstrip()
        space = text[: len(text) - len(bare)]
        before = self._nonce if self._names.may_go_on_in(bare) else ""
        return space + before + self._broken(bare, self._names.first_characters)

    def _broken(self, text: str, pattern: re.Pattern[str]) -> str:
        """The nonce goes behind the first character of each match."""
        return pattern.sub(lambda match: text[match.start()] + self._nonce, text)

    def _mapped(self, value: Any, change: Callable[[str], str]) -> Any:
        if isinstance(value, str):
            return change(str(value))
        if isinstance(value, Mapping):
            return {
                key if key in _KEYS else change(str(key)): self._item(key, item, change)
                for key, item in value.items()
            }
        return [self._mapped(item, change) for item in value] if isinstance(value, list | tuple) else value

    def _item(self, key: Any, item: Any, change: Callable[[str], str]) -> Any:
        """Templates compare roles and types with names of their own, and make control tokens of roles."""
        known = ROLES if key == "role" else _TYPES if key == "type" else ()
        return item if isinstance(item, str) and item in known else self._mapped(item, change)


def _strings(value: Any, where: str) -> Iterator[str]:
    """All texts in plain data.

    Raises:
        RenderError: something that is no plain data, which a template should not get hold of.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, f"{where}[{index}]")
    elif value is not None and not isinstance(value, bool | int | float):
        raise RenderError(f"{where} must be plain JSON data, not {type(value).__name__}")


def _absent_strings(texts: list[str], wanted: int) -> list[str]:
    """Strings of noncharacters, all of one length, that no text contains, plain or escaped."""
    everything = "\0".join(texts)
    for length in count(1):
        candidates = (character * length for character in _NONCHARACTERS)
        absent = [nonce for nonce in candidates if not re.search(_traces(nonce), everything)]
        if len(absent) >= wanted:
            return absent[:wanted]
    raise AssertionError("a string longer than all texts is in none of them")


def _escape(character: str) -> str:
    """A JSON escape without its backslash; Python's is the same."""
    return f"u{ord(character):04x}"


def _traces(nonce: str) -> str:
    escaped = "".join(rf"\\+{_escape(character)}" for character in nonce)
    percent = "".join(f"%{byte:02x}" for byte in nonce.encode())
    return f"{re.escape(nonce)}|(?i:{escaped}|{percent})"
