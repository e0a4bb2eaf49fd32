"""The head and its loss, a chunk of rows at a time: one buffer of logits, which become their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from corral.kernels.training.kernels import TrainingKernels
from corral.kernels.training.linear import mm
from corral.kernels.training.loss import logits_gradient, token_logprobs


class CrossEntropy(NamedTuple):
    """`sum` of the negative log-probabilities of the targets, float32; how many were the likeliest token."""

    sum: Tensor
    correct: Tensor


def cross_entropy(
    kernels: TrainingKernels, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int
) -> CrossEntropy:
    """The loss of targets int64 [N] after hidden states [N, D], by a head [V, D].

    The gradients are computed along with the loss, so that the head is applied once only.
    """
    total, correct = _CrossEntropy.apply(kernels, hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return CrossEntropy(total, correct)


def head_logprobs(
    kernels: TrainingKernels, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int
) -> Tensor:
    """Log-probabilities float32 [N] of targets [N], for losses that are no plain sum of them.

    The backward pass computes each chunk's logits again.
    """
    logprobs: Tensor = _HeadLogprobs.apply(kernels, hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return logprobs


class _Chunks:
    """Rows of the head's input, a chunk at a time, with their logits."""

    def __init__(
        self, kernels: TrainingKernels, hidden: Tensor, weight: Tensor, needs: tuple[bool, bool], chunk: int
    ) -> None:
        self._kernels, self._hidden, self._weight, self._chunk = kernels, hidden, weight, chunk
        self.of_hidden = torch.empty_like(hidden) if needs[0] else None
        self.of_weight = torch.zeros_like(weight) if needs[1] else None

    @property
    def need_gradients(self) -> bool:
        return self.of_hidden is not None or self.of_weight is not None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        count = len(self._hidden)
        buffer = self._hidden.new_empty(min(self._chunk, count), len(self._weight))
        for start in range(0, count, self._chunk):
            part = slice(start, min(start + self._chunk, count))
            logits = buffer[: part.stop - start]
            yield part, mm(self._kernels, self._hidden[part], self._weight.t(), logits)

    def differentiate(self, part: slice, gradient: Tensor) -> None:
        """Carries the gradient of a chunk's logits on to its rows and to the weight."""
        if self.of_hidden is not None:
            mm(self._kernels, gradient, self._weight, self.of_hidden[part])
        if self.of_weight is not None:
            mm(self._kernels, gradient.t(), self._hidden[part], self.of_weight, add=True)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: TrainingKernels, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        chunks = _Chunks(kernels, hidden, weight, ctx.needs_input_grad[1:3], chunk)
        total, correct = hidden.new_zeros((), dtype=torch.float32), targets.new_zeros(())
        for part, logits in chunks:
            ones = torch.ones(len(logits), dtype=torch.float32) if chunks.need_gradients else None
            result = token_logprobs(kernels, logits, targets[part], ones)
            total -= result.logprobs.sum()
            correct += result.correct.sum()
            if ones is not None:
                chunks.differentiate(part, logits)
        ctx.save_for_backward(chunks.of_hidden, chunks.of_weight)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what is there in place: it is this backward pass's alone."""
        scaled = [None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.saved_tensors]
        return (None, *scaled, None, None)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: TrainingKernels, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int
    ) -> Tensor:
        logprobs, normalizers = torch.empty(2, len(targets), dtype=torch.float32).unbind()
        for part, logits in _Chunks(kernels, hidden, weight, (False, False), chunk):
            result = token_logprobs(kernels, logits, targets[part])
            logprobs[part], normalizers[part] = result.logprobs, result.normalizers
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.kernels, ctx.chunk = kernels, chunk
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        coefficients = of_logprobs.float().neg()
        chunks = _Chunks(ctx.kernels, hidden, weight, ctx.needs_input_grad[1:3], ctx.chunk)
        for part, logits in chunks:
            logits_gradient(ctx.kernels, logits, targets[part], normalizers[part], coefficients[part])
            chunks.differentiate(part, logits)
        return None, chunks.of_hidden, chunks.of_weight, None, None
