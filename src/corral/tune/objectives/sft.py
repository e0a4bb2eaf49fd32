"""Supervised fine-tuning, and pretraining that goes on: predicting the trained tokens."""

from __future__ import annotations

from collections.abc import Sequence

from corral.tune.batch import Batch
from corral.tune.examples import Example, Item
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss, Mean


class SFT:
    """The negative log-likelihood of the trained tokens; metric "accuracy" is of the likeliest token."""

    smallest_batch = 1

    def collate(self, items: Sequence[Item]) -> Batch:
        return Batch.of([item for item in items if isinstance(item, Example)], items)

    def weight(self, batch: Batch) -> int:
        return batch.num_trained

    def __call__(self, network: Network, batch: Batch) -> Loss:
        loss = network.cross_entropy(batch)
        return Loss(loss.sum, {"accuracy": Mean(loss.correct, batch.num_trained)})
