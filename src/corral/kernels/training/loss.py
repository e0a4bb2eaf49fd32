"""The loss of a chunk of logits, in place: what a head of many rows calls for each of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from corral.kernels.training.calls import TokenLoss
from corral.kernels.training.kernels import TYPES, TrainingKernels


class TokenLogprobs(NamedTuple):
    """Of n rows of logits and as many targets.

    Attributes:
        logprobs: float32 [n], the logarithms of the targets' probabilities.
        normalizers: float32 [n], the logarithms of the sums of exponentials.
        correct: bool [n], whether the target is the likeliest token; of several the first.
    """

    logprobs: Tensor
    normalizers: Tensor
    correct: Tensor


def token_logprobs(
    kernels: TrainingKernels, logits: Tensor, targets: Tensor, coefficients: Tensor | None = None
) -> TokenLogprobs:
    """Log-probabilities of targets [n] by logits [n, V], float32 or bfloat16, computed in float32.

    With `coefficients`, float32 [n], logits become coefficient * (softmax - one at the target), which is the
    gradient of minus the log-probabilities. No autograd here: it is for functions that are their own.
    """
    count = len(targets)
    logprobs, normalizers = torch.empty(2, count, dtype=torch.float32)
    result = TokenLogprobs(logprobs, normalizers, torch.empty(count, dtype=torch.bool))
    call = _call(logits, targets, coefficients)
    call.logprobs, call.normalizers = result.logprobs.data_ptr(), result.normalizers.data_ptr()
    call.correct = result.correct.data_ptr()
    kernels.run("token_logprobs", call)
    return result


def logits_gradient(
    kernels: TrainingKernels, logits: Tensor, targets: Tensor, normalizers: Tensor, coefficients: Tensor
) -> Tensor:
    """The logits [n, V] after they have become coefficient * (softmax - one at the target), with normalizers
    [n] known from `token_logprobs`."""
    call = _call(logits, targets, coefficients)
    assert _is_plain(normalizers, torch.float32, len(targets)), "normalizers are float32 [n]"
    call.normalizers = normalizers.data_ptr()
    kernels.run("logits_gradient", call)
    return logits


def _call(logits: Tensor, targets: Tensor, coefficients: Tensor | None) -> TokenLoss:
    assert logits.is_contiguous(), "logits lie in one piece: they are overwritten"
    assert _is_plain(targets, torch.int64, len(logits)), "targets are int64 [n]"
    assert coefficients is None or _is_plain(coefficients, torch.float32, len(logits)), "float32 [n]"
    assert bool(((targets >= 0) & (targets < logits.shape[1])).all()), "targets are tokens"
    return TokenLoss(
        type=TYPES[logits.dtype],
        rows=logits.shape[0],
        columns=logits.shape[1],
        logits=logits.data_ptr(),
        targets=targets.data_ptr(),
        coefficients=None if coefficients is None else coefficients.data_ptr(),
    )


def _is_plain(x: Tensor, dtype: torch.dtype, count: int) -> bool:
    return x.dtype == dtype and x.shape == (count,) and x.is_contiguous()
