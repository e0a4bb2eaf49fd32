"""The head and its loss, a chunk of rows at a time: the logits of a whole batch never exist at once.

With a vocabulary of 128,256, the float32 logits of 8,192 tokens would take 4.2 GB, and their gradient as much
again. Only rows that predict a trained token come here. A chunk's logits, their exponentials and their
gradient share one buffer, which is used again for the next chunk; for a 16-bit head there are two, of 16 and
32 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from corral.kernels.training.head import CrossEntropy

_BLOCK = 8192  # rows of a head whose 16-bit gradients exist at once before they are added up in float32


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> CrossEntropy:
    """The loss of targets [N] after hidden states [N, D], by a head [V, D].

    The gradients are computed along with the loss, while a chunk's logits are there, so that the head is
    applied once only; they are scaled when the backward pass comes. A second backward pass through the same
    loss is refused.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        total, correct = _CrossEntropy.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
        return CrossEntropy(total, correct)
    logits, correct = _Logits(hidden, weight, chunk), targets.new_zeros(())
    total = hidden.new_zeros((), dtype=torch.float32)
    for part in logits.parts:
        seen = logits.of(part, targets[part])
        total -= seen.logprobs.sum()
        correct += seen.correct
    return CrossEntropy(total, correct)


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Log-probabilities float32 [N] of targets [N], for losses that are no plain sum of them.

    The backward pass computes each chunk's logits again.
    """
    logprobs: Tensor = _TokenLogprobs.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return logprobs


def token_logprobs_through(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs` for a head that is more than a matrix: adapted, quantized, or split over devices.

    Gives also how many targets were the likeliest token.
    """

    def of_chunk(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(rows).float()
        logprobs = -F.cross_entropy(logits, wanted, reduction="none")
        return logprobs, _likeliest(logits.detach(), wanted)

    parts, correct = [hidden.new_zeros(0, dtype=torch.float32)], targets.new_zeros(())
    for rows, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
        logprobs, right = checkpoint(of_chunk, rows, wanted, use_reentrant=False)
        parts.append(logprobs)
        correct += right
    return torch.cat(parts), correct


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logits = _Logits(hidden, weight, chunk)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad)
        total, correct = hidden.new_zeros((), dtype=torch.float32), targets.new_zeros(())
        for part in logits.parts:
            seen = logits.of(part, targets[part])
            total -= seen.logprobs.sum()
            correct += seen.correct
            gradients.add(part, logits.gradient(seen, targets[part]))
        # Not by save_for_backward: what that keeps has two owners, and would be copied to become `.grad`.
        ctx.sums, ctx.types = gradients.sums, (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError("this loss has gone backward already; compute it again")
        return (*map(_scaled, sums, ctx.types, (scale, scale)), None, None)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        logits = _Logits(hidden, weight, chunk)
        logprobs = hidden.new_empty(len(targets), dtype=torch.float32)
        normalizers = torch.empty_like(logprobs)
        for part in logits.parts:
            seen = logits.of(part, targets[part])
            logprobs[part], normalizers[part] = seen.logprobs, seen.normalizers
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.chunk = chunk
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        logits = _Logits(hidden, weight, ctx.chunk)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad)
        for part in logits.parts:
            of_logits = logits.gradient_again(part, targets[part], normalizers[part], of_logprobs[part])
            gradients.add(part, of_logits)
        return (*map(_scaled, gradients.sums, (hidden.dtype, weight.dtype)), None, None)


class _Seen(NamedTuple):
    """Of a chunk of n rows: log-probabilities [n] of its targets; of what normalizes them the logarithm [n],
    and the inverse [n, 1] of the buffer's sums, all float32; how many targets were the likeliest."""

    logprobs: Tensor
    normalizers: Tensor
    inverse: Tensor
    correct: Tensor


class _Logits:
    """The logits of N rows, a chunk at a time in the same memory."""

    def __init__(self, hidden: Tensor, weight: Tensor, chunk: int) -> None:
        self._hidden, self._head = hidden, weight.t()
        n = len(hidden)
        self.parts = [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]
        size = (min(chunk, n), len(weight))
        self._logits = hidden.new_empty(size)  # [chunk, V] in the head's type
        self._exact = self._logits  # [chunk, V] float32
        if hidden.dtype != torch.float32:
            self._exact = hidden.new_empty(size, dtype=torch.float32)

    def of(self, part: slice, targets: Tensor) -> _Seen:
        """Computes a chunk's logits, and leaves their exponentials, less the highest, in the buffer."""
        exact = self._compute(part)
        wanted, highest = exact.gather(1, targets[:, None]), exact.amax(-1, keepdim=True)
        sums = exact.sub_(highest).exp_().sum(-1, keepdim=True)
        normalizers = highest + sums.log()
        correct = (wanted >= highest).sum()
        return _Seen((wanted - normalizers).squeeze(1), normalizers.squeeze(1), 1 / sums, correct)

    def gradient(self, seen: _Seen, targets: Tensor) -> Tensor:
        """The gradient [n, V], in the head's type, of the sum of negative log-probabilities of the chunk that
        was computed last: softmax less one-hot."""
        exact = self._exact[: len(targets)].mul_(seen.inverse)
        return self._less(exact, targets, exact.new_ones(len(targets), 1))

    def gradient_again(
        self, part: slice, targets: Tensor, normalizers: Tensor, of_logprobs: Tensor
    ) -> Tensor:
        """The gradient [n, V] by way of log-probabilities whose own is `of_logprobs` [n]."""
        scale = -of_logprobs[:, None]
        exact = self._compute(part).sub_(normalizers[:, None]).exp_().mul_(scale)
        return self._less(exact, targets, scale)

    def _compute(self, part: slice) -> Tensor:
        n = part.stop - part.start
        torch.mm(self._hidden[part], self._head, out=self._logits[:n])
        if self._exact is not self._logits:
            self._exact[:n].copy_(self._logits[:n])
        return self._exact[:n]

    def _less(self, exact: Tensor, targets: Tensor, at_targets: Tensor) -> Tensor:
        exact.scatter_add_(1, targets[:, None], -at_targets)
        if self._exact is self._logits:
            return exact
        return self._logits[: len(targets)].copy_(exact)


class _Gradients:
    """The gradients for hidden states and head, of those that are wanted.

    That of the head adds up over chunks in float32, whatever its type: in bfloat16, with its 8 bits, each sum
    would be rounded again.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: tuple[bool, ...]) -> None:
        self._hidden, self._weight = hidden, weight
        self._for_hidden = torch.empty_like(hidden) if wanted[0] else None
        self._for_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None

    @property
    def sums(self) -> tuple[Tensor | None, Tensor | None]:
        """Of all chunks: [N, D] and [V, D] float32."""
        return self._for_hidden, self._for_weight

    def add(self, part: slice, of_logits: Tensor) -> None:
        """Takes in a chunk's gradient [n, V] of the logits."""
        if self._for_hidden is not None:
            torch.mm(of_logits, self._weight, out=self._for_hidden[part])
        if self._for_weight is None:
            return
        rows, sums = self._hidden[part], self._for_weight
        if of_logits.dtype == sums.dtype:
            sums.addmm_(of_logits.t(), rows)
            return
        for start in range(0, len(sums), _BLOCK):
            block = slice(start, start + _BLOCK)
            sums[block] += torch.mm(of_logits[:, block].t(), rows).float()


def _scaled(gradient: Tensor | None, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor | None:
    """A gradient in a type, times a float32 scale that keeps its bits; in place where it can be."""
    if gradient is not None and scale is not None:
        gradient = gradient.float().mul_(scale)
    return None if gradient is None else gradient.to(dtype)


def _likeliest(logits: Tensor, targets: Tensor) -> Tensor:
    """How many targets [n] have the highest of logits [n, V]."""
    return (logits.gather(1, targets[:, None]) >= logits.amax(-1, keepdim=True)).sum()
