"""The state of a dialog, without a terminal: what was said, the settings, and how it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from corral.cli.chat_file import ChatError, SavedChat, is_text
from corral.engine.events import FinishReason
from corral.engine.outputs import Delta
from corral.text.messages import Message
from corral.text.rendered import Rendered

if TYPE_CHECKING:
    from corral.engine.sampling.params import SamplingParams

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")


class ChatModel(Protocol):
    """What a dialog needs of a model; `corral.LLM` is one."""

    @property
    def name(self) -> str: ...

    @property
    def max_model_len(self) -> int: ...

    def render(self, messages: Sequence[Message]) -> Rendered: ...

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Delta]: ...


@runtime_checkable
class Closeable(Protocol):
    """Pieces whose making can be ended early."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Exchange:
    """A question with what was said to it.

    `interrupted` says that the last reply was stopped before its end; there is no reply at all where it had
    not begun.
    """

    question: Message
    replies: tuple[Message, ...] = ()
    interrupted: bool = False


class Answer:
    """An answer while it is given: iterate for its pieces within a `with` block.

    The end of the block keeps in the dialog what was said so far; an exception leaves the dialog as it was.
    """

    def __init__(self, pieces: Iterator[Delta], keep: Callable[[Answer], None]) -> None:
        self._pieces, self._keep = pieces, keep
        self.text = ""
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.started = time.perf_counter()
        self.times: list[float] = []

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._pieces, Closeable):
            self._pieces.close()  # frees the model's cache
        if kind is None:
            self._keep(self)

    def __iter__(self) -> Iterator[str]:
        for delta in self._pieces:
            self.text += delta.text
            self.finish_reason = delta.finish_reason
            if delta.token_ids:
                self.num_tokens += len(delta.token_ids)
                self.times.append(time.perf_counter())
            yield delta.text

    @property
    def interrupted(self) -> bool:
        """Whether it did not come to its end."""
        return self.finish_reason in (None, "cancelled")

    @property
    def seconds_to_first_token(self) -> float:
        """How long reading the prompt took; 0 where nothing came."""
        return self.times[0] - self.started if self.times else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """How fast tokens followed the first one; None where that cannot be said."""
        seconds = self.times[-1] - self.times[0] if self.times else 0.0
        return (self.num_tokens - 1) / seconds if seconds > 0 else None


class ChatSession:
    """A dialog with a model, and with one of its adapters where it is named."""

    def __init__(self, model: ChatModel, params: SamplingParams, adapter: str | None = None) -> None:
        self.model = model
        self.adapter = adapter
        self.params = params
        self.exchanges: tuple[Exchange, ...] = ()
        self._defaults = params
        self._system: str | None = None

    @property
    def system(self) -> str | None:
        """The system message; None where there is none."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._system = _text(text) if text else None

    def messages(self, exchanges: Sequence[Exchange] | None = None) -> list[Message]:
        """What the model reads before the next question; a question that got no reply is left out."""
        kept = [exchange for exchange in self._or_all(exchanges) if exchange.replies]
        return [message for group in (self._opening(), *map(_said, kept)) for message in group]

    def ask(self, text: str) -> Answer:
        """Goes on with a question.

        Raises:
            RequestError: the dialog is longer than the context.
            ChatError: the question is empty, or is no text.
        """
        if not text.strip():
            raise ChatError("the message is empty")
        return self._answer(self.exchanges, Message("user", _text(text)))

    def retry(self) -> Answer:
        """Answers the last question again; the new answer takes the old one's place when there is one."""
        if not self.exchanges:
            raise ChatError("there is no answer to try again")
        return self._answer(self.exchanges[:-1], self.exchanges[-1].question)

    def undo(self) -> Exchange:
        """Drops the last exchange and returns it."""
        if not self.exchanges:
            raise ChatError("there is nothing to undo")
        *kept, dropped = self.exchanges
        self.exchanges = tuple(kept)
        return dropped

    def reset(self) -> None:
        """Drops all exchanges; the system message and the settings stay."""
        self.exchanges = ()

    def set(self, name: str, value: Any) -> None:
        """Changes one of `SETTINGS`.

        Raises:
            RequestError: the value is out of range; nothing has changed then.
        """
        self.params = replace(self.params, **{name: value})

    def set_default(self, name: str) -> None:
        """Puts a setting back to what the dialog began with."""
        self.set(name, getattr(self._defaults, name))

    def num_tokens(self) -> int:
        """How many tokens of the context the dialog takes, with the header of the next answer."""
        messages = self.messages()
        return len(self.model.render(messages).tokens) if len(messages) > len(self._opening()) else 0

    def saved(self) -> SavedChat:
        """The dialog as a file holds it."""
        messages, interrupted = self._opening(), set()
        for exchange in self.exchanges:
            messages += _said(exchange)
            if exchange.interrupted and exchange.replies:
                interrupted.add(len(messages) - 1)
        settings = {name: getattr(self.params, name) for name in SETTINGS}
        return SavedChat(tuple(messages), frozenset(interrupted), settings, self.model.name)

    def restore(self, chat: SavedChat) -> None:
        """Goes on with a saved dialog; settings that it does not hold stay.

        Raises:
            ChatError, RequestError: it does not fit; nothing has changed then.
        """
        unknown = next((name for name in chat.settings if name not in SETTINGS), None)
        if unknown is not None:
            raise ChatError(f"the saved chat has an unknown setting {unknown!r}")
        params = replace(self.params, **chat.settings)
        system, exchanges = _split(chat)
        self.params, self.system, self.exchanges = params, system, exchanges

    def _answer(self, before: tuple[Exchange, ...], question: Message) -> Answer:
        messages = [*self.messages(before), question]
        pieces = self.model.stream_chat(messages, self.params, adapter=self.adapter)
        return Answer(pieces, lambda answer: self._keep(before, question, answer))

    def _keep(self, before: tuple[Exchange, ...], question: Message, answer: Answer) -> None:
        silent = answer.interrupted and not answer.text
        if silent and len(before) < len(self.exchanges):
            return  # a repetition was stopped before it began: the old answer stays
        replies = () if silent else (Message("assistant", answer.text),)
        self.exchanges = (*before, Exchange(question, replies, answer.interrupted))

    def _opening(self) -> list[Message]:
        return [] if self._system is None else [Message("system", self._system)]

    def _or_all(self, exchanges: Sequence[Exchange] | None) -> Sequence[Exchange]:
        return self.exchanges if exchanges is None else exchanges


def _said(exchange: Exchange) -> list[Message]:
    return [exchange.question, *exchange.replies]


def _text(text: str) -> str:
    if not is_text(text):
        raise ChatError("the message is not valid Unicode text")
    return text


def _split(chat: SavedChat) -> tuple[str | None, tuple[Exchange, ...]]:
    """The system message and the exchanges of a saved dialog: each begins with a user's message."""
    messages = list(enumerate(chat.messages))
    system = messages.pop(0)[1].content if messages and messages[0][1].role == "system" else None
    groups: list[list[int]] = []
    for index, message in messages:
        if message.role == "system":
            raise ChatError(f"messages[{index}] is a system message; only the first one may be")
        if message.role == "user":
            groups.append([index])
        elif groups:
            groups[-1].append(index)
        else:
            raise ChatError(f"messages[{index}] is from the {message.role}; a dialog begins with the user")
    return system, tuple(_exchange(chat, group) for group in groups)


def _exchange(chat: SavedChat, indices: list[int]) -> Exchange:
    question, *replies = (chat.messages[index] for index in indices)
    return Exchange(question, tuple(replies), not replies or indices[-1] in chat.interrupted)
