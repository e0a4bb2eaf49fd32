"""What is asked of the engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from reprlib import repr as short

from corral.engine.sampling.checks import require_flag, require_number, require_whole
from corral.engine.sampling.params import MAX_LOGPROBS, SamplingParams
from corral.errors import RequestError


def as_ids(name: str, ids: Collection[int]) -> tuple[int, ...]:
    """Token ids as a tuple.

    Raises:
        RequestError: it is no list, or something in it is no whole number.
    """
    if not isinstance(ids, Collection) or isinstance(ids, str | bytes):
        raise RequestError(f"{name} is {short(ids)}; it must be a list of token ids")
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise RequestError(f"{name} holds {short(token_id)}; token ids are whole numbers")
    return tuple(ids)


@dataclass(frozen=True)
class Score:
    """Log-probabilities of given tokens, instead of new ones.

    Attributes:
        start: the first token to score, at least 1: the very first has nothing before it.
        top: give so many of the most likely tokens at each place too (0 to 20).
        next_top: the same for the place after the last token.
        next_token_ids: tokens whose log-probability after the last token is wanted.
    """

    start: int = 1
    top: int = 0
    next_top: int = 0
    next_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "next_token_ids", as_ids("score.next_token_ids", self.next_token_ids))
        require_whole("score.start", self.start, low=1)
        require_whole("score.top", self.top, low=0, high=MAX_LOGPROBS)
        require_whole("score.next_top", self.next_top, low=0, high=MAX_LOGPROBS)


@dataclass(frozen=True)
class Request:
    """One prompt and what to do with it.

    Attributes:
        tokens: the prompt.
        params: how to go on from it; not used where `score` is given.
        stop_ids: the ids that end a text, from the model or the prompt format.
        shown_ids: control tokens whose text is given although `params` leaves control tokens out: those that
            carry meaning, such as `<|python_tag|>`.
        continues: the output goes on from the prompt's last text, so that a leading space is kept.
        score: score the prompt instead of going on from it.
        adapter: the name of a loaded adapter.
        cache_salt: requests share cached prefixes only with those of the same salt: one for each tenant.
        priority: lower comes first; equal ones in the order of their arrival.
        timeout: seconds from now after which the request is cancelled.
    """

    tokens: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()
    shown_ids: frozenset[int] = frozenset()
    continues: bool = False
    score: Score | None = None
    adapter: str | None = None
    cache_salt: str = ""
    priority: int = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", as_ids("the prompt", self.tokens))
        for name in ("stop_ids", "shown_ids"):
            object.__setattr__(self, name, frozenset(as_ids(name, getattr(self, name))))
        if not isinstance(self.params, SamplingParams):
            raise RequestError(f"params is {self.params!r}; it must be a SamplingParams")
        if self.score is not None and not isinstance(self.score, Score):
            raise RequestError(f"score is {self.score!r}; it must be a Score")
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise RequestError(f"adapter is {self.adapter!r}; it must be the name of a loaded adapter")
        require_flag("continues", self.continues)
        require_whole("priority", self.priority, low=-(2**31), high=2**31)
        if self.timeout is not None:
            require_number("timeout", self.timeout, low=0.0, low_open=True)
        if not isinstance(self.cache_salt, str):
            raise RequestError(f"cache_salt is {self.cache_salt!r}; it must be a text")
