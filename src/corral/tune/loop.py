"""The one training loop's step: microbatches in, one change of the weights out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corral.tune.batch import Batch
from corral.tune.errors import TuneError
from corral.tune.feed import Step
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss, Mean, Objective


class Ranks(Protocol):
    """The processes that train one model together."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int:
        """How many of them see different rows."""
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks."""
        ...

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Makes each gradient the sum over all ranks, where that has not been done already."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def total(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """There is nothing to add."""


class Optimizer(Protocol):
    """What changes the weights."""

    def step(self, lr: float) -> float:
        """One step at a learning rate; gives the norm of all gradients before they were clipped."""
        ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True)
class Measures:
    """What a step, or an evaluation, measured over all ranks.

    `loss` and `metrics` are means; `weight` is what the loss was divided by, `tokens` all tokens that went
    through the network.
    """

    loss: float
    weight: float
    tokens: float
    metrics: Mapping[str, float]


class Loop:
    """Steps of an objective on a network.

    The loss of a step is the sum over its microbatches on all ranks, divided by the sum of their weights, so
    that how a step is cut changes nothing (Hugging Face transformers had the mean of means until
    https://github.com/huggingface/transformers/pull/34191).
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        ranks: Ranks | None = None,
    ) -> None:
        self._network, self._objective, self._optimizer = network, objective, optimizer
        self._parameters = parameters
        self._ranks = ranks or Alone()

    def step(self, step: Step, lr: float) -> tuple[Measures, float]:
        """One optimizer step; gives its measures and the norm of the gradients.

        Raises:
            TuneError: nothing in the step is trained.
        """
        batches = [self._objective.collate(items).to(self._network.device) for items in step.microbatches]
        (weight,) = self._ranks.total([self._weight(batches, step.counted)])
        if weight == 0:
            raise TuneError("no token of a step is trained; look at the data with `corral tune inspect`")
        sums = Sums()
        for batch, counts in zip(batches, step.counted, strict=True):
            loss = self._objective(self._network, batch)
            (loss.sum * ((1.0 if counts else 0.0) / weight)).backward()  # type: ignore[no-untyped-call]
            sums.add(loss, batch, counts=counts)
        self._ranks.sum_gradients(self._parameters)
        norm = self._optimizer.step(lr)
        self._optimizer.zero_grad()
        return sums.measures(weight, self._ranks), norm

    def evaluate(self, steps: Iterable[Step]) -> Measures:
        """The objective over steps, all as one, without a change."""
        sums, weight = Sums(), 0.0
        with torch.no_grad():
            for step in steps:
                for items, counts in zip(step.microbatches, step.counted, strict=True):
                    batch = self._objective.collate(items).to(self._network.device)
                    loss = self._objective(self._network, batch)
                    sums.add(loss, batch, counts=counts)
                    weight += self._objective.weight(batch) if counts else 0
        (total,) = self._ranks.total([weight])
        return sums.measures(total, self._ranks)

    def _weight(self, batches: Sequence[Batch], counted: Sequence[bool]) -> float:
        weights = (self._objective.weight(batch) for batch in batches)
        return float(sum(weight for weight, counts in zip(weights, counted, strict=True) if counts))


class Sums:
    """Adds up what microbatches measured. Nothing waits for the device before the end."""

    def __init__(self) -> None:
        self._loss: list[Tensor] = []
        self._metrics: dict[str, list[Mean]] = {}
        self._tokens = 0

    def add(self, loss: Loss, batch: Batch, *, counts: bool = True) -> None:
        """Takes in a microbatch; of one that does not count the names of its metrics only, which all ranks
        have to know."""
        for name, mean in loss.metrics.items():
            self._metrics.setdefault(name, []).extend([mean] if counts else [])
        if counts:
            self._loss.append(loss.sum.detach())
            self._tokens += len(batch.tokens)

    def measures(self, weight: float, ranks: Ranks) -> Measures:
        """Means over all ranks, each of which has the same metrics."""
        names = sorted(self._metrics)
        values = [sum(float(loss) for loss in self._loss), float(self._tokens)]
        for name in names:
            values.append(sum(float(mean.sum) for mean in self._metrics[name]))
            values.append(sum(float(mean.count) for mean in self._metrics[name]))
        loss, tokens, *pairs = ranks.total(values)
        metrics = {
            name: pairs[2 * i] / pairs[2 * i + 1] if pairs[2 * i + 1] else float("nan")
            for i, name in enumerate(names)
        }
        return Measures(loss / weight if weight else float("nan"), weight, tokens, metrics)
