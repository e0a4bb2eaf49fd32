"""What an engine has done, and what it holds at a moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace


@dataclass
class Counters:
    """Sums since the start.

    Attributes:
        steps: that had work.
        prompt_tokens, cached_tokens: of the prompts that were begun, each counted once, and how many of these
            tokens were in the prefix cache then.
        generated_tokens, draft_tokens, accepted_tokens: of all outputs.
        failures: requests that failed.
        finished: outputs by the reason of their end.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    failures: int = 0
    finished: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Counters:
        """The sums as they are now."""
        return replace(self, finished=self.finished.copy())


@dataclass(frozen=True)
class EngineStats:
    """A look at an engine.

    Attributes:
        running, waiting: sequences in steps, and in the queue.
        blocks_used, blocks: of the key-value cache; used ones belong to a running sequence, and one of all is
            never given out.
        block_size: tokens of a block.
        preemptions: how often a sequence gave its blocks back.
        evictions: how often a prefix's block was given up for another.
        counters: sums since the start.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks: int
    block_size: int
    preemptions: int
    evictions: int
    counters: Counters

    @property
    def capacity(self) -> int:
        """How many tokens the key-value cache holds at once."""
        return (self.blocks - 1) * self.block_size
