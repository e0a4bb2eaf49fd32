"""Which rows come in which step: the same for the same seed, however the step is cut and wherever it resumes.

The order of an epoch, and what is packed with what, follow from the seed, the epoch and the lengths alone. So
the state of the feed is where it stands: no buffer has to be saved, and every rank computes the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from corral.tune.errors import TuneError
from corral.tune.examples import Item
from corral.tune.packing import pack


@dataclass(frozen=True)
class FeedOptions:
    """How rows become steps.

    Attributes:
        batch_size: rows of a microbatch; when packing, rows of up to `max_length` tokens, each of which may
            hold several documents.
        accumulation: microbatches of a step, on each rank.
        max_length: tokens of a packed row.
        packing: whether short documents share a row. They never see each other.
        shuffle: whether each epoch has an order of its own.
        seed: of that order.
    """

    batch_size: int
    accumulation: int
    max_length: int
    packing: bool = False
    shuffle: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Position:
    """Where a feed stands: `step` steps of epoch `epoch` are done."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Step:
    """The items of one optimizer step on one rank, a list for each microbatch, and where the feed stands
    after it. A microbatch that is not `counted` repeats another: a rank has to take part, with no weight."""

    microbatches: tuple[tuple[Item, ...], ...]
    counted: tuple[bool, ...]
    after: Position
    progress: float  # epochs done after this step, e.g. 1.5


class Feed:
    """The steps of one rank over epochs of a data set.

    Args:
        items: the data set; read by index.
        lengths: tokens of each item.
        options: how rows become steps.
        rank, ranks: which share of each step is this one's.
        smallest_batch: the fewest items of a microbatch, as the objective says.
    """

    def __init__(
        self,
        items: Sequence[Item],
        lengths: Sequence[int],
        options: FeedOptions,
        *,
        rank: int = 0,
        ranks: int = 1,
        smallest_batch: int = 1,
    ) -> None:
        self._items, self._lengths, self._options = items, np.asarray(lengths), options
        self._rank, self._ranks, self._smallest = rank, ranks, smallest_batch
        self._plan: tuple[int, list[list[int]]] | None = None
        if len(items) < smallest_batch:
            raise TuneError(f"the data has {len(items)} rows to train on; it needs at least {smallest_batch}")

    @property
    def steps_per_epoch(self) -> int:
        """Of the first epoch; packing may make another a step longer or shorter."""
        return self.steps_of(0)

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps of an epoch; the last may be short."""
        return -(-len(self._microbatches(epoch)) // self._together)

    def steps(self, start: Position = Position()) -> Iterator[Step]:
        """The steps from a position on, without end."""
        position = start
        while True:
            while position.step >= self.steps_of(position.epoch):
                position = Position(position.epoch + 1)
            step = self._step(position)
            yield step
            position = step.after

    @property
    def _together(self) -> int:
        """Microbatches of a step over all ranks."""
        return self._options.accumulation * self._ranks

    def _step(self, position: Position) -> Step:
        plan = self._microbatches(position.epoch)
        window = plan[position.step * self._together : (position.step + 1) * self._together]
        mine, counted = [], []
        for first in range(0, len(window), self._ranks):
            turn = window[first : first + self._ranks]
            present = self._rank < len(turn)
            chosen = turn[self._rank] if present else turn[0]
            mine.append(tuple(self._items[index] for index in chosen))
            counted.append(present)
        steps = self.steps_of(position.epoch)
        return Step(
            tuple(mine),
            tuple(counted),
            Position(position.epoch, position.step + 1),
            position.epoch + (position.step + 1) / steps,
        )

    def _microbatches(self, epoch: int) -> list[list[int]]:
        """The rows of each microbatch of an epoch, over all ranks."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._planned(epoch))
        return self._plan[1]

    def _planned(self, epoch: int) -> list[list[int]]:
        options, order = self._options, np.arange(len(self._items))
        if options.shuffle:
            order = np.random.default_rng([options.seed, epoch]).permutation(order)
        rows = [[int(index)] for index in order]
        if options.packing:
            rows = [
                [int(order[place]) for place in row]
                for row in pack(self._lengths[order].tolist(), options.max_length)
            ]
        groups = [
            [index for row in rows[start : start + options.batch_size] for index in row]
            for start in range(0, len(rows), options.batch_size)
        ]
        if len(groups) > 1 and len(groups[-1]) < self._smallest:
            groups[-2:] = [groups[-2] + groups[-1]]
        return groups
