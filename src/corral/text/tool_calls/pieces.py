"""What a model's text turns out to hold, piece by piece: text and calls."""

from __future__ import annotations

from dataclasses import dataclass

from corral.text.messages import ToolCall


@dataclass(frozen=True)
class TextPiece:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call whose name is declared has begun; calls are counted from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next fragment of a call's arguments as JSON text."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """A call is over.

    Attributes:
        index: of the call.
        call: the call; None where its arguments broke off or were cut off.
        arguments_text: all its fragments joined: the JSON of the arguments, or what there is of it. Behind
            the last argument that could be read it goes on in the model's own words.
        notes: what was read leniently, what was converted, and where the arguments do not fit the schema.
        error: why there is no call.
    """

    index: int
    call: ToolCall | None
    arguments_text: str
    notes: tuple[str, ...] = ()
    error: str | None = None


ChatPiece = TextPiece | CallBegun | CallArguments | CallEnded


class Pieces:
    """Collects pieces and joins those that belong together.

    White space next to a call is left out. So white space is held back until it is known what follows.
    """

    def __init__(self) -> None:
        self._ready: list[ChatPiece] = []
        self._text: list[str] = []
        self._space: list[str] = []
        self._arguments: list[str] = []
        self._index = 0
        self._behind_call = False
        self.last = ""  # the last character of the text; empty at its start and right behind a call

    def text(self, text: str) -> None:
        """Adds text."""
        if text:
            self.last = text[-1]
        for character in text:
            if character.isspace():
                self._space.append(character)
                continue
            if not self._behind_call:
                self._text += self._space
            self._space.clear()
            self._behind_call = False
            self._text.append(character)

    def begin(self, call: CallBegun) -> None:
        """Adds the beginning of a call."""
        self._space.clear()
        self._flush()
        self._index = call.index
        self._ready.append(call)

    def arguments(self, text: str) -> None:
        """Adds a fragment of the arguments of the call that was begun last."""
        if text:
            self._arguments.append(text)

    def end(self, call: CallEnded) -> None:
        """Adds the end of a call."""
        self._flush()
        self._ready.append(call)
        self._behind_call = True
        self.last = ""

    def close(self) -> None:
        """The text has ended: what was held back belongs to it, unless a call stands before it."""
        if not self._behind_call:
            self._text += self._space
        self._space.clear()

    def take(self) -> list[ChatPiece]:
        """What is certain by now."""
        self._flush()
        ready, self._ready = self._ready, []
        return ready

    def _flush(self) -> None:
        if self._text:
            self._ready.append(TextPiece("".join(self._text)))
            self._text.clear()
        if self._arguments:
            self._ready.append(CallArguments(self._index, "".join(self._arguments)))
            self._arguments.clear()
