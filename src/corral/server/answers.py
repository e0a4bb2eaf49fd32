"""What an answer says while it is made: one stream of events that every interface translates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from corral.engine.events import Event, Finished, PromptScored, Started, Timings, TokenLogprobs, Tokens, Usage
from corral.server.running import RunningRequest
from corral.text.messages import ToolCall
from corral.text.tool_calls.pieces import CallArguments, CallBegun, CallEnded, ChatPiece, TextPiece

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Said:
    """The next pieces of an output, and the log-probabilities of the tokens that have come since the last."""

    index: int
    pieces: Sequence[ChatPiece]
    num_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class Ended:
    """The end of an output. `stop` is the stop string or token id that ended it, if one did."""

    index: int
    reason: Reason
    stop: int | str | None
    usage: Usage
    timings: Timings


AnswerEvent = Started | PromptScored | Said | Ended


class PieceReader(Protocol):
    """Makes pieces of an output's text: `corral.text.tool_calls.CallParser`, or `PlainText`."""

    @property
    def done(self) -> bool: ...

    def push(self, text: str) -> list[ChatPiece]: ...

    def finish(self, *, complete: bool) -> list[ChatPiece]: ...


class PlainText:
    """Text that holds no calls."""

    done = False

    def push(self, text: str) -> list[ChatPiece]:
        return [TextPiece(text)] if text else []

    def finish(self, *, complete: bool) -> list[ChatPiece]:
        return []


class Answer:
    """The events of a request, as the interfaces tell them. Iterate once; `leave` ends it early.

    Args:
        running: the request.
        reader: makes a reader for each output.
    """

    def __init__(self, running: RunningRequest, reader: Callable[[], PieceReader] = PlainText) -> None:
        self.running = running
        self._readers = [reader() for _ in range(running.handle.num_outputs)]
        self._calls = [0] * len(self._readers)

    async def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        while events := await self.running.events():
            for event in events:
                for told in self._told(event):
                    yield told

    def leave(self) -> None:
        """Ends what is left."""
        self.running.leave()

    async def collect(self) -> Collected:
        """The whole answer."""
        collected = Collected([Output() for _ in self._readers])
        async for event in self:
            collected.add(event)
        return collected

    def _told(self, event: Event) -> Sequence[AnswerEvent]:
        if isinstance(event, Tokens):
            reader = self._readers[event.index]
            if reader.done:  # the rest of what was to be one call
                return ()
            pieces = self._counted(event.index, reader.push(event.text))
            if reader.done and len(self._readers) == 1:
                self.running.stop()
            return (Said(event.index, pieces, len(event.token_ids), event.logprobs),)
        if isinstance(event, Finished):
            return self._end(event)
        return (event,) if isinstance(event, Started | PromptScored) else ()

    def _end(self, event: Finished) -> Sequence[AnswerEvent]:
        reader, index = self._readers[event.index], event.index
        told: list[AnswerEvent] = []
        if not reader.done:
            pieces = self._counted(index, reader.finish(complete=event.reason != "length"))
            told += [Said(index, pieces)] if pieces else []
        reason: Reason = "length" if event.reason == "length" and not reader.done else "stop"
        if reason == "stop" and self._calls[index]:
            reason = "tool_calls"
        stop = event.stop if event.reason == "stop" else None
        return [*told, Ended(index, reason, stop, event.usage, event.timings)]

    def _counted(self, index: int, pieces: list[ChatPiece]) -> list[ChatPiece]:
        for piece in pieces:
            if isinstance(piece, CallBegun):
                self._calls[index] += 1
        return pieces


@dataclass
class Call:
    """A call as it was written. `call` is None where its arguments are broken or cut off."""

    id: str
    name: str
    arguments: str = ""
    call: ToolCall | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Output:
    """One whole output."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    end: Ended | None = None

    def add(self, pieces: Sequence[ChatPiece]) -> None:
        for piece in pieces:
            if isinstance(piece, TextPiece):
                self.text += piece.text
            elif isinstance(piece, CallBegun):
                self.calls.append(Call(piece.id, piece.name))
            elif isinstance(piece, CallArguments):
                self.calls[piece.index].arguments += piece.text
            elif isinstance(piece, CallEnded):
                self.calls[piece.index].call, self.calls[piece.index].notes = piece.call, piece.notes


@dataclass
class Collected:
    """A whole answer."""

    outputs: list[Output]
    started: Started | None = None
    scored: PromptScored | None = None

    def add(self, event: AnswerEvent) -> None:
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, PromptScored):
            self.scored = event
        elif isinstance(event, Said):
            output = self.outputs[event.index]
            output.add(event.pieces)
            if event.logprobs is not None:
                output.logprobs = [*(output.logprobs or ()), *event.logprobs]
        else:
            self.outputs[event.index].end = event

    @property
    def usage(self) -> Usage:
        """Of all outputs together; the prompt counts once."""
        return total([output.end.usage for output in self.outputs if output.end is not None])


def total(usages: Sequence[Usage]) -> Usage:
    """The tokens of several outputs of one prompt, which counts once."""
    first = usages[0] if usages else Usage(0, 0, 0)
    return Usage(
        first.prompt_tokens,
        first.cached_tokens,
        sum(usage.completion_tokens for usage in usages),
        sum(usage.draft_tokens for usage in usages),
        sum(usage.accepted_tokens for usage in usages),
    )
