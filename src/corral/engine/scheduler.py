"""Which tokens the next step computes.

Continuous batching (Yu et al., OSDI 2022) with chunked prefill (Agrawal et al., OSDI 2024): every step has
one token budget. Sequences that decode come first, then pieces of prompts, then those that wait. When blocks
run out, the sequence of the lowest rank gives its blocks back and waits to be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from corral.engine.cache.block_pool import BlockPool
from corral.engine.config import SchedulerConfig
from corral.engine.sequence import Sequence
from corral.engine.waiting import WaitingQueue


@dataclass(frozen=True)
class Work:
    """The share of one sequence in a step: its next `count` tokens, and room for `max_drafts` guesses.

    `copies` are (source, target) blocks to copy before the step.
    """

    sequence: Sequence
    count: int
    max_drafts: int = 0
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def completes(self) -> bool:
        """Whether all tokens that are known are computed with it, so that a next one can be chosen."""
        return self.sequence.num_computed + self.count == len(self.sequence.tokens)


DraftLength = Callable[[Sequence, int], int]
"""How many tokens to guess for a sequence, when so many sequences decode in the step."""


class Scheduler:
    """Decides, for each step, which sequences run and how many tokens of each.

    A sequence is in `waiting`, in `running`, or unknown here. Running sequences are kept in the order of
    their rank: the last one is the first to give its blocks back.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool, draft_length: DraftLength) -> None:
        self.config = config
        self.pool = pool
        self.waiting = WaitingQueue(config.max_overtakes)
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._draft_length = draft_length

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn."""
        self.waiting.add(sequence)

    def add_fork(self, sequence: Sequence) -> None:
        """Lets a sequence run that shares its blocks with a running one."""
        self.running.append(sequence)
        self.running.sort(key=self.waiting.rank)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence and frees its blocks."""
        self.waiting.remove(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        sequence.table.free()

    def schedule(self) -> list[Work]:
        """The work of the next step; empty only where there is none."""
        works: dict[Sequence, Work] = {}
        budget = self.config.max_num_batched_tokens
        decodes = [s for s in self.running if s.decodes]
        budget -= self._schedule_decodes(decodes, works)
        for sequence in [s for s in self.running if not s.decodes]:
            budget -= self._schedule_prefill(sequence, budget, works)
        while budget > 0 and self.waiting and (admitted := self._admit(works)):
            budget -= self._schedule_prefill(admitted, budget, works)
        assert works or not self.has_work, "one sequence alone always fits"
        return list(works.values())

    def _schedule_decodes(self, decodes: list[Sequence], works: dict[Sequence, Work]) -> int:
        """Gives each its next token and room for guesses; returns what that takes of the budget."""
        spare = (self.config.max_num_batched_tokens - len(decodes)) // 2  # the other half is for prompts
        used = 0
        for sequence in decodes:
            if sequence in self.running and self._reserve(sequence, 1, 0, works):
                used += 1
        for sequence in decodes if spare > 0 else ():
            wanted = min(self._draft_length(sequence, len(decodes)), spare) if sequence in works else 0
            if wanted > 0 and self._extend(sequence, wanted, works):
                used, spare = used + wanted, spare - wanted
        return used

    def _schedule_prefill(self, sequence: Sequence, budget: int, works: dict[Sequence, Work]) -> int:
        count = min(budget, self.config.prefill_chunk, sequence.num_remaining)
        if count <= 0 or sequence not in self.running or not self._reserve(sequence, count, 0, works):
            return 0
        return count

    def _reserve(self, sequence: Sequence, count: int, drafts: int, works: dict[Sequence, Work]) -> bool:
        """Finds blocks, if need be those of lower ranks; False where it had to give up its own."""
        start = sequence.num_computed
        while (copies := sequence.table.reserve(start, start + count + drafts)) is None:
            victim = self.running[-1]
            self._preempt(victim, works)
            if victim is sequence:
                return False
        works[sequence] = Work(sequence, count, drafts, tuple(copies))
        return True

    def _extend(self, sequence: Sequence, drafts: int, works: dict[Sequence, Work]) -> bool:
        """Adds room for guesses where there are blocks to spare; nobody gives way to a guess."""
        work, start = works[sequence], sequence.num_computed
        copies = sequence.table.reserve(start, start + work.count + drafts)
        if copies is None:
            return False
        works[sequence] = Work(sequence, work.count, drafts, (*work.copies, *copies))
        return True

    def _admit(self, works: dict[Sequence, Work]) -> Sequence | None:
        """Moves the first waiting sequence to the running ones, if there are room and blocks for it."""
        first = self.waiting.first
        while not self._has_room(first):
            if not self.running or self.waiting.rank(self.running[-1]) < self.waiting.rank(first):
                return None
            self._preempt(self.running[-1], works)
        self.waiting.pop()
        self.running.append(first)
        self.running.sort(key=self.waiting.rank)
        return first

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether it may run beside the others: a place, and blocks for all that it will soon compute.

        Takes what the prefix cache has of it, if so.
        """
        if sum(s.num_slots for s in self.running) + sequence.num_slots > self.config.max_num_seqs:
            return False
        sequence.num_computed = sequence.table.adopt_prefix(sequence.tokens, sequence.cacheable)
        missing = -(-(len(sequence.tokens) + 1) // self.pool.block_size) - len(sequence.table.blocks)
        if not self.running or missing + len(self.running) <= self.pool.num_free:
            return True
        sequence.preempt()
        return False

    def _preempt(self, victim: Sequence, works: dict[Sequence, Work]) -> None:
        self.running.remove(victim)
        works.pop(victim, None)
        victim.preempt()
        self.num_preemptions += 1
        self.waiting.add(victim)

    def check_integrity(self, others: Iterable[Sequence] = ()) -> None:
        """Asserts that every block is held by whom it should be, and every sequence is in one place."""
        running, waiting = set(self.running), set(self.waiting)
        assert len(running) == len(self.running), "a sequence runs twice"
        assert not running & waiting, "a sequence runs and waits"
        assert all(not s.table.blocks for s in waiting), "a waiting sequence holds blocks"
        ranks = [self.waiting.rank(s) for s in self.running]
        assert ranks == sorted(ranks), "running sequences are out of order"
        self.pool.check_integrity([s.table for s in [*self.running, *others]])
