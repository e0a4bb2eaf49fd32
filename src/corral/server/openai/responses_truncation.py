"""`truncation: "auto"`: a dialog that is too long for the context loses its oldest turns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from corral.llm import LLM
from corral.server.chat_task import Toolbox
from corral.text.messages import as_messages

Messages = list[dict[str, Any]]


def shortened(llm: LLM, messages: Messages, toolbox: Toolbox, max_output_tokens: int | None) -> Messages:
    """The dialog without as many of its first turns as it takes to leave room for the answer.

    System messages at the beginning stay, and so does the last turn; what a turn's user message brings about,
    calls and what they gave, goes with it. Room is left for `max_output_tokens`, up to half of the context.
    """
    room = llm.max_model_len - min(max_output_tokens or 1, llm.max_model_len // 2)
    head = next((n for n, message in enumerate(messages) if not _is_system(message)), len(messages))
    starts = [n for n, message in enumerate(messages) if n > head and message["role"] == "user"]

    def without(start: int) -> Messages:
        return messages[:head] + messages[start:]

    def fits(start: int) -> bool:
        return _length(llm, without(start), toolbox) <= room

    starts = [head, *starts]
    first = bisect_left(starts, True, key=fits)
    return without(starts[min(first, len(starts) - 1)])


def _length(llm: LLM, messages: Sequence[Mapping[str, Any]], toolbox: Toolbox) -> int:
    return len(llm.render(as_messages(messages), toolbox.shown).tokens)


def _is_system(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("system", "developer")
