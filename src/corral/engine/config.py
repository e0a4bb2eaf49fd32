"""How an engine is set up."""

from __future__ import annotations

from dataclasses import dataclass

from corral.engine.sampling.checks import require_whole
from corral.errors import RequestError


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of a step and of the queue.

    Attributes:
        max_num_seqs: sequences that run at once; each of a request's `n` outputs is one.
        max_num_batched_tokens: the token budget of a step; more than `max_num_seqs`, so that a prompt makes
            headway even while every other sequence decodes.
        max_prefill_chunk: the longest piece of one prompt in a step; None leaves it to the budget.
        max_waiting_requests: requests that may wait for their first step; further ones are refused.
        max_waiting_tokens: their prompts' tokens in all.
        max_overtakes: how many later requests of a better priority may go before a waiting one.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_prefill_chunk: int | None = None
    max_waiting_requests: int = 4096
    max_waiting_tokens: int = 2**24
    max_overtakes: int = 64

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting_requests", "max_waiting_tokens"):
            require_whole(name, getattr(self, name), low=1)
        require_whole("max_overtakes", self.max_overtakes, low=0)
        if self.max_prefill_chunk is not None:
            require_whole("max_prefill_chunk", self.max_prefill_chunk, low=1)
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise RequestError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be more than "
                f"max_num_seqs, {self.max_num_seqs}"
            )

    @property
    def prefill_chunk(self) -> int:
        """The longest piece of one prompt in a step."""
        return self.max_prefill_chunk or self.max_num_batched_tokens
