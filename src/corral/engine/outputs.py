"""What a generation gives, whole or piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """The next piece of an output. `text` may be empty while a character is incomplete; the last piece has a
    `finish_reason`: "stop" at a stop token, "length" at `max_tokens` or the end of the context."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class CompletionOutput:
    """One generated text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class RequestOutput:
    """The outputs for one prompt."""

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
