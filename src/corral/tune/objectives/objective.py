"""The protocol of objectives, and what they say of a microbatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from corral.tune.batch import Batch
from corral.tune.examples import Item
from corral.tune.network import Network


@dataclass(frozen=True)
class Mean:
    """A measure as a sum and what to divide it by, so that sums over microbatches and ranks stay right."""

    sum: Tensor
    count: Tensor | int


@dataclass(frozen=True)
class Loss:
    """The loss of a microbatch as a sum, float32, and what else it measured, by name, detached."""

    sum: Tensor
    metrics: Mapping[str, Mean] = field(default_factory=dict)


class Objective(Protocol):
    """A loss. It is divided by the weights of all microbatches of an optimizer step, over all ranks: what
    each trained token (or pair) counts does not depend on how the step was cut."""

    @property
    def smallest_batch(self) -> int:
        """The fewest items of a microbatch: 1, or 2 where items are compared with each other."""
        ...

    def collate(self, items: Sequence[Item]) -> Batch:
        """The documents of items side by side."""
        ...

    def weight(self, batch: Batch) -> int:
        """What the batch counts: its trained tokens, or its pairs."""
        ...

    def __call__(self, network: Network, batch: Batch) -> Loss:
        """The loss of a batch that `collate` made, summed."""
        ...
