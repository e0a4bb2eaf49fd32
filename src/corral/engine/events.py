"""What a request says while it runs: a closed set of frozen events.

A request gives one `Started`; a `PromptScored` where log-probabilities of the prompt were asked for; any
number of `Tokens` and one `Finished` for each of its `n` outputs, which are told apart by `index`. Or, at any
moment, one `Failed`, which ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from corral.errors import CorralError

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, and its rank among all: 1 is the most likely."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of the token that stands here, and the most likely ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Started:
    """The request has been given its first step. `cached_tokens` of the prompt were in the prefix cache."""

    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class PromptScored:
    """Log-probabilities of the prompt's tokens from `start` on, each given all tokens before it.

    `next_tokens` are log-probabilities of the tokens that could come after the prompt, as far as asked for.
    """

    start: int
    logprobs: tuple[TokenLogprobs, ...]
    next_tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """The next tokens of an output and the text that is certain with them: empty while a character is
    incomplete or a stop string may have begun."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one output: of its prompt, of those cached before, generated, and guessed ahead."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds of one output: in the queue, from there to its first token, and from that to its last."""

    queued: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.queued + self.prefill + self.decode


@dataclass(frozen=True)
class Finished:
    """The end of one output. `stop` is the stop token id or stop string that ended it; None where the model's
    own end did. `message` says what went wrong, where the reason is "error" or "cancelled"."""

    index: int
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop: int | str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Failed:
    """The end of a request that could not be run."""

    error: CorralError


Event = Started | PromptScored | Tokens | Finished | Failed
