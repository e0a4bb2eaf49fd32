"""A text that comes in pieces, read as if it were all there.

Grammars are generators that read character by character. They stop wherever the text has not come further
yet, and go on there when more has come. Nothing but the reader knows where one piece ends and the next
begins, so what they read cannot depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]

SPACE = frozenset(" \t\r\n")
MAX_NESTING = 64
MAX_WORD = 256
_FORGET = 4096


class BrokenError(Exception):
    """The text does not follow the grammar; the message says where, as the rest of a sentence."""


class UnfinishedError(BrokenError):
    """The text ends too early."""


class Reader:
    """Characters, of which those before `at` have been read. A grammar may set `at` back.

    `notes` collects what was read leniently.
    """

    def __init__(self) -> None:
        self._characters: list[str] = []
        self.at = 0
        self.ended = False
        self.notes: list[str] = []

    def give(self, text: str) -> None:
        """More text has come."""
        self._characters.extend(text)

    def peek(self) -> Steps[str]:
        """The next character, which stays there; empty at the end."""
        while self.at == len(self._characters):
            if self.ended:
                return ""
            yield
        return self._characters[self.at]

    def take(self) -> None:
        """Goes past the character that was peeked at."""
        self.at += 1

    def next(self) -> Steps[str]:
        """The next character, or nothing at the end."""
        character = yield from self.peek()
        self.at += len(character)
        return character

    def skip_space(self) -> Steps[str]:
        """Goes past white space and peeks at what follows."""
        while (character := (yield from self.peek())) in SPACE:
            self.at += 1
        return character

    def one_of(self, literals: Collection[str]) -> Steps[str]:
        """Goes past one of some texts, none of which begins another; else past what the text shares with any
        of them, and gives nothing."""
        found = ""
        while True:
            character = yield from self.peek()
            longer = found + character
            if not character or not any(literal.startswith(longer) for literal in literals):
                return ""
            self.at += 1
            found = longer
            if found in literals:
                return found

    def word(self, more: str = "_") -> Steps[str]:
        """Letters, digits and what is in `more`; possibly nothing.

        Raises:
            BrokenError: more than a word could have.
        """
        found: list[str] = []
        while (character := (yield from self.peek())).isalnum() or (character and character in more):
            self.at += 1
            found.append(character)
            if len(found) > MAX_WORD:
                raise BrokenError(f"a word has more than {MAX_WORD} characters")
        return "".join(found)

    def since(self, start: int) -> str:
        """The text from a position to what has been read."""
        return "".join(self._characters[start : self.at])

    def forget(self) -> None:
        """What has been read is needed no more; positions of before are void."""
        if self.at > _FORGET and 2 * self.at > len(self._characters):
            del self._characters[: self.at]
            self.at = 0


def unexpected(character: str, expected: str) -> BrokenError:
    """The error where a character stands that does not belong there."""
    if not character:
        return UnfinishedError(f"the text ends where {expected} should follow")
    return BrokenError(f"{character!r} stands where {expected} should")


def read_whole(text: str, read: Callable[[Reader], Steps[T]]) -> T:
    """Reads a text that is all there.

    Raises:
        BrokenError: it does not follow the grammar, or something follows.
    """
    reader = Reader()
    reader.give(text)
    reader.ended = True
    steps = _to_the_end(reader, read)
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a reader does not wait for more than there is")


def _to_the_end(reader: Reader, read: Callable[[Reader], Steps[T]]) -> Steps[T]:
    value = yield from read(reader)
    rest = yield from reader.skip_space()
    if rest:
        raise unexpected(rest, "the end")
    return value
