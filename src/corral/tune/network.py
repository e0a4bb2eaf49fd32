"""The network as objectives see it: batches in, losses and log-probabilities of the trained tokens out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from corral.kernels.training import head as native
from corral.kernels.training.head import CrossEntropy
from corral.kernels.training.kernels import TrainingKernels, takes
from corral.model.attention import Attend, PackedCausal
from corral.model.llama import Linear, Llama
from corral.model.project import Project, plain
from corral.tune.batch import Batch
from corral.tune.head import cross_entropy, token_logprobs, token_logprobs_through

LOSS_CHUNK = 256
"""Rows of logits that exist at once, as suggested."""


class Network:
    """A Llama in training.

    Args:
        model: the network; what of it is trained requires gradients.
        project: applies its linear layers, with adapters where there are any.
        adapts_head: whether `project` adds something to the head.
        attend: makes attention over documents side by side, of their bounds.
        loss_chunk: how many rows of logits exist at once.
        kernels: compute the head's loss, where they take it.
    """

    def __init__(
        self,
        model: Llama,
        project: Project = plain,
        *,
        adapts_head: bool = False,
        attend: Callable[[tuple[int, ...]], Attend] = PackedCausal,
        loss_chunk: int = LOSS_CHUNK,
        kernels: TrainingKernels | None = None,
    ) -> None:
        self.model, self._project, self._attend = model, project, attend
        self._adapts_head, self._loss_chunk, self._kernels = adapts_head, loss_chunk, kernels
        self._in_use = project

    @property
    def device(self) -> torch.device:
        """Where it computes; weights that are sharded may lie elsewhere."""
        return self.model.inverse_frequencies.device

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [T, D] of all tokens, normalized for the head."""
        hidden: Tensor = self.model(batch.tokens, batch.positions, self._attend(batch.bounds), self._in_use)
        return hidden

    def cross_entropy(self, batch: Batch) -> CrossEntropy:
        """The summed negative log-probability of the trained tokens, and how many were the likeliest."""
        hidden = self.hidden(batch).index_select(0, batch.rows)
        weight = self._head_weight()
        if weight is not None:
            if self._kernels is not None and takes(hidden, weight):
                return native.cross_entropy(self._kernels, hidden, weight, batch.targets, self._loss_chunk)
            return cross_entropy(hidden, weight, batch.targets, self._loss_chunk)
        logprobs, correct = self._through_head(hidden, batch.targets)
        return CrossEntropy(-logprobs.sum(), correct)

    def token_logprobs(self, batch: Batch) -> Tensor:
        """The log-probability of each trained token, float32 [N]."""
        hidden = self.hidden(batch).index_select(0, batch.rows)
        weight = self._head_weight()
        if weight is not None:
            if self._kernels is not None and takes(hidden, weight):
                return native.head_logprobs(self._kernels, hidden, weight, batch.targets, self._loss_chunk)
            return token_logprobs(hidden, weight, batch.targets, self._loss_chunk)
        return self._through_head(hidden, batch.targets)[0]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """While this lasts, the network is without its adapters, and without gradients: the model before
        training, where adapters are what is trained."""
        self._in_use = plain
        try:
            with torch.no_grad():
                yield
        finally:
            self._in_use = self._project

    def _head_weight(self) -> Tensor | None:
        """The head's matrix, where the head is that and nothing more."""
        head = self.model.lm_head
        adapted = self._adapts_head and self._in_use is not plain
        is_matrix = type(head) in (Linear, nn.Linear) and type(head.weight) in (nn.Parameter, Tensor)
        return head.weight if is_matrix and not adapted else None

    def _through_head(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        in_use = self._in_use

        def head(rows: Tensor) -> Tensor:
            return self.model.logits(rows, in_use)

        return token_logprobs_through(head, hidden, targets, self._loss_chunk)
