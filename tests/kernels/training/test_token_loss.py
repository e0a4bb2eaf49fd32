"""Log-probabilities of tokens and the gradient of their logits, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from corral.kernels.training.loss import logits_gradient, token_logprobs
from tests.kernels.training.instruction_sets import both_types, kernels_of, on_all

pytestmark = on_all

vocabularies = pytest.mark.parametrize("vocabulary", [1, 15, 16, 1000, 4999])


@both_types
@vocabularies
def test_losses_and_gradients_are_those_of_cross_entropy(
    isa: str, dtype: torch.dtype, vocabulary: int
) -> None:
    torch.manual_seed(0)
    logits, targets = 4 * torch.randn(11, vocabulary), torch.randint(0, vocabulary, (11,))
    coefficients, logits = torch.randn(11), logits.to(dtype)
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact, targets, reduction="none")
    torch.autograd.backward((losses * coefficients).sum())
    assert exact.grad is not None

    before = logits.clone()
    read = token_logprobs(kernels_of(isa), logits, targets)
    assert torch.equal(logits, before)
    written = token_logprobs(kernels_of(isa), logits, targets, coefficients)
    for result in (read, written):
        assert torch.allclose(result.logprobs.double(), -losses, atol=1e-5, rtol=1e-5)
        assert torch.allclose(result.normalizers.double(), exact.logsumexp(-1), atol=1e-5, rtol=1e-6)
        assert torch.equal(result.correct, before.argmax(-1) == targets)
    largest = exact.grad.abs().max().clamp(min=1e-6)
    assert bool(((logits.double() - exact.grad).abs() <= 2**-8 * exact.grad.abs() + 1e-6 * largest).all())

    again = logits_gradient(kernels_of(isa), before, targets, read.normalizers, coefficients)
    assert again is before
    assert torch.equal(again, logits)


@both_types
def test_only_the_first_of_equal_logits_is_the_likeliest(isa: str, dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 100, dtype=dtype)
    logits[:, [20, 40, 41]] = 3.0
    result = token_logprobs(kernels_of(isa), logits, torch.tensor([20, 40, 41, 0]))
    assert result.correct.tolist() == [True, False, False, False]


@both_types
def test_large_and_infinite_logits_are_lawful(isa: str, dtype: torch.dtype) -> None:
    logits = torch.full((3, 50), -math.inf, dtype=dtype)
    logits[0, 7] = 3e38
    logits[1, [3, 4]] = -200
    logits[2] = 0
    result = token_logprobs(kernels_of(isa), logits, torch.tensor([7, 3, 49]), torch.ones(3))
    assert torch.allclose(result.logprobs, torch.tensor([0.0, math.log(0.5), math.log(0.02)]))
    assert logits[0].tolist() == [0.0] * 50
    assert torch.allclose(logits[1, 3:5].float(), torch.tensor([-0.5, 0.5]), rtol=1e-4)


def test_nan_is_not_hidden(isa: str) -> None:
    logits = torch.randn(2, 70)
    logits[0, 50] = math.nan
    result = token_logprobs(kernels_of(isa), logits, torch.tensor([3, 3]), torch.ones(2))
    assert math.isnan(result.logprobs[0])
    assert bool(logits[0].isnan().all())
    assert bool(logits[1].isfinite().all())


@both_types
def test_threads_and_other_rows_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(40, 777).to(dtype), torch.randint(0, 777, (40,))
    outcomes = []
    for threads in (1, 2, 4):
        own = logits.clone()
        outcomes.append((own, token_logprobs(kernels_of(isa, threads), own, targets, torch.ones(40))))
    one = logits[13:14].clone()
    alone = token_logprobs(kernels_of(isa), one, targets[13:14], torch.ones(1))
    for own, result in outcomes:
        assert torch.equal(own, outcomes[0][0])
        assert torch.equal(own[13:14], one)
        assert torch.equal(result.logprobs, outcomes[0][1].logprobs)
        assert torch.equal(result.logprobs[13:14], alone.logprobs)
