"""What an engine has done, and what it holds at a moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from corral.engine.cache.block_pool import CacheStats


@dataclass
class Counters:
    """Sums since the start. `finished` counts outputs by their reason, `failures` requests that failed."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    failures: int = 0
    finished: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class EngineStats:
    """A look at an engine.

    Attributes:
        running, waiting: sequences in steps, and in the queue.
        blocks_used, blocks: of the key-value cache; used ones belong to a running sequence.
        preemptions: how often a sequence gave its blocks back.
        counters: sums since the start.
        prefix_cache: how many tokens were looked up in the prefix cache, and found.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks: int
    preemptions: int
    counters: Counters
    prefix_cache: CacheStats
