"""The head's loss in chunks is cross entropy, with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corral.kernels.training.head import cross_entropy, head_logprobs
from tests.kernels.training.instruction_sets import both_types, exact_leaf, kernels_of, leaf, near, on_all

pytestmark = on_all

ROWS, SIZE, VOCABULARY = 23, 24, 150
chunks = pytest.mark.parametrize("chunk", [1, 7, 23, 100])


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, SIZE, dtype=dtype), torch.randn(VOCABULARY, SIZE, dtype=dtype)
    return hidden, weight, torch.randint(0, VOCABULARY, (ROWS,))


def check(own: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> None:
    # In bfloat16 logits, some beyond ten, are rounded, and the weight's sum after each chunk.
    for got, wanted in zip(own, exact, strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert near(got.grad, wanted.grad, 100 if got.dtype == torch.float32 else 16)


@both_types
@chunks
def test_the_sum_of_losses(isa: str, dtype: torch.dtype, chunk: int) -> None:
    hidden, weight, targets = inputs(dtype)
    own, exact = (leaf(hidden), leaf(weight)), (exact_leaf(hidden), exact_leaf(weight))
    result = cross_entropy(kernels_of(isa), *own, targets, chunk)
    logits = F.linear(*exact)
    wanted = F.cross_entropy(logits, targets, reduction="sum")
    torch.autograd.backward(result.sum * 0.25)
    torch.autograd.backward(wanted * 0.25)
    assert result.sum.item() == pytest.approx(wanted.item(), rel=1e-6 if dtype == torch.float32 else 1e-2)
    assert int(result.correct) == int((F.linear(hidden, weight).argmax(-1) == targets).sum())
    check(own, exact)


@both_types
@chunks
def test_each_tokens_log_probability(isa: str, dtype: torch.dtype, chunk: int) -> None:
    hidden, weight, targets = inputs(dtype)
    own, exact = (leaf(hidden), leaf(weight)), (exact_leaf(hidden), exact_leaf(weight))
    logprobs, coefficients = head_logprobs(kernels_of(isa), *own, targets, chunk), torch.randn(ROWS)
    wanted = -F.cross_entropy(F.linear(*exact), targets, reduction="none")
    torch.autograd.backward(logprobs, coefficients)
    torch.autograd.backward(wanted, coefficients.double())
    assert logprobs.dtype == torch.float32
    assert torch.allclose(logprobs.double(), wanted, atol=1e-5 if dtype == torch.float32 else 0.2)
    check(own, exact)


def test_chunks_change_no_bit_of_a_row(isa: str) -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    kernels = kernels_of(isa)
    whole = head_logprobs(kernels, hidden, weight, targets, 100)
    assert torch.equal(head_logprobs(kernels, hidden, weight, targets, 7), whole)
    assert torch.equal(head_logprobs(kernels_of(isa, 1), hidden[5:9], weight, targets[5:9], 3), whole[5:9])


@pytest.mark.parametrize("trained", [0, 1])
def test_only_what_is_trained_has_a_gradient(isa: str, trained: int) -> None:
    hidden, weight, targets = inputs(torch.float32)
    pair = (hidden, weight)
    pair[trained].requires_grad_()
    torch.autograd.backward(cross_entropy(kernels_of(isa), hidden, weight, targets, 7).sum)
    together = pair[trained].grad
    pair[trained].grad = None
    torch.autograd.backward(-head_logprobs(kernels_of(isa), hidden, weight, targets, 7).sum())
    apart = pair[trained].grad
    assert together is not None
    assert apart is not None
    assert torch.allclose(together, apart, atol=1e-5)
    assert pair[1 - trained].grad is None


def test_no_rows_are_no_loss(isa: str) -> None:
    hidden, weight, targets = inputs(torch.float32)
    result = cross_entropy(kernels_of(isa), leaf(hidden[:0]), leaf(weight), targets[:0], 7)
    assert (result.sum.item(), result.correct.item()) == (0.0, 0)
    assert head_logprobs(kernels_of(isa), hidden[:0], weight, targets[:0], 7).shape == (0,)
