"""The queue of sequences that wait for blocks: by priority, then by arrival, and none for ever."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from corral.engine.sequence import Sequence


class WaitingQueue:
    """Sequences in the order in which they may run.

    A sequence that later arrivals of a better priority have overtaken `max_overtakes` times goes before all
    others that have not: whatever else comes, its turn comes.
    """

    def __init__(self, max_overtakes: int) -> None:
        self._max_overtakes = max_overtakes
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def first(self) -> Sequence:
        """Whose turn it is."""
        return self._sequences[0]

    def rank(self, sequence: Sequence) -> tuple[bool, int, int, int]:
        """The smaller, the sooner; in the queue, and for keeping blocks when they run out."""
        owner = sequence.owner
        patient = owner.overtaken < self._max_overtakes
        return patient, owner.request.priority if patient else 0, owner.arrival, sequence.index

    def add(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=self.rank)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, if it is there."""
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def pop(self) -> Sequence:
        """Takes the first one out and notes whom it has overtaken."""
        chosen = self._sequences.pop(0)
        overtaken = {s.owner for s in self._sequences if s.owner.arrival < chosen.owner.arrival}
        for owner in overtaken:
            owner.overtaken += 1
        if any(owner.overtaken == self._max_overtakes for owner in overtaken):
            self._sequences.sort(key=self.rank)
        return chosen
