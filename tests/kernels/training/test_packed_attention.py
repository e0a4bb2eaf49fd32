"""Attention over documents side by side, forward and backward, against float64 and against its promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corral.kernels.training.attention import NativePackedCausal, packed_attention
from corral.model.attention import PackedCausal
from tests.kernels.training.instruction_sets import both_types, exact_leaf, kernels_of, leaf, near, on_all

pytestmark = on_all

HEADS = pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"),
    [(9, 3, 64), (4, 1, 128), (2, 2, 16), (6, 3, 32), (3, 1, 10), (2, 1, 80)],
)


def tensors(tokens: int, q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values, and the gradient of the output."""
    heads = (q_heads, kv_heads, kv_heads, q_heads)
    return [torch.randn(tokens, n, head_dim, dtype=dtype) for n in heads]


def passes(isa: str, qkvg: Sequence[Tensor], bounds: Sequence[int], threads: int = 2) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values."""
    q, k, v = (leaf(x) for x in qkvg[:3])
    out = packed_attention(kernels_of(isa, threads), q, k, v, bounds)
    torch.autograd.backward(out, qkvg[3])
    grads = [x.grad for x in (q, k, v)]
    return [out.detach(), *(grad for grad in grads if grad is not None)]


def exact_passes(qkvg: Sequence[Tensor], bounds: Sequence[int]) -> list[Tensor]:
    q, k, v = (exact_leaf(x) for x in qkvg[:3])
    out = PackedCausal(bounds)(0, q, k, v)
    torch.autograd.backward(out, qkvg[3].double())
    grads = [x.grad for x in (q, k, v)]
    return [out.detach(), *(grad for grad in grads if grad is not None)]


def check(isa: str, qkvg: Sequence[Tensor], bounds: Sequence[int], float_units: float = 32) -> None:
    # In bfloat16 the weights and their gradients are rounded once more on their way through a product.
    got, wanted = passes(isa, qkvg, bounds), exact_passes(qkvg, bounds)
    assert len(got) == len(wanted) == 4
    for own, exact in zip(got, wanted, strict=True):
        assert near(own, exact, float_units if own.dtype == torch.float32 else 8, least=4)


@both_types
@HEADS
def test_values_and_gradients_are_those_of_attention(
    isa: str, dtype: torch.dtype, q_heads: int, kv_heads: int, head_dim: int
) -> None:
    torch.manual_seed(0)
    bounds = [0, 64, 65, 66, 150, 279]  # a whole tile, single tokens, odd ends, several tiles
    check(isa, tensors(bounds[-1], q_heads, kv_heads, head_dim, dtype), bounds)


@both_types
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 140), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    st.sampled_from([2, 16, 34, 64]),
    st.integers(0, 2**16),
)
def test_any_documents_are_right(
    isa: str, dtype: torch.dtype, lengths: list[int], heads: tuple[int, int], head_dim: int, seed: int
) -> None:
    torch.manual_seed(seed)
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    check(isa, tensors(bounds[-1], *heads, head_dim, dtype), bounds)


@both_types
def test_a_document_is_the_same_bits_in_any_company(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bounds = [0, 1, 38, 168, 175]
    qkvg = tensors(bounds[-1], 6, 2, 32, dtype)
    packed = passes(isa, qkvg, bounds)
    for start, end in pairwise(bounds):
        alone = passes(isa, [x[start:end] for x in qkvg], [0, end - start])
        for one, other in zip(alone, packed, strict=True):
            assert torch.equal(one, other[start:end])


@both_types
def test_threads_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bounds = [0, 100, 131, 300]
    qkvg = tensors(bounds[-1], 4, 2, 64, dtype)
    first = passes(isa, qkvg, bounds, threads=1)
    for threads in (2, 4):
        for one, other in zip(passes(isa, qkvg, bounds, threads), first, strict=True):
            assert torch.equal(one, other)


@both_types
def test_later_tokens_and_other_documents_reach_nothing_even_as_nan(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bounds = [0, 50, 90, 130]
    qkvg = tensors(bounds[-1], 2, 1, 16, dtype)
    clean = passes(isa, qkvg, bounds)
    for x in qkvg:
        x[50:90] = math.nan
    spoiled = passes(isa, qkvg, bounds)
    for one, other in zip(clean, spoiled, strict=True):
        assert torch.equal(one[:50], other[:50])
        assert torch.equal(one[90:], other[90:])
        assert bool(other[50:90].isnan().any())


def test_scores_far_apart_neither_overflow_nor_vanish(isa: str) -> None:
    torch.manual_seed(0)
    q, k, v, gradient = tensors(140, 2, 1, 16, torch.float32)
    # Scores of thousands are off by 2^-12.
    check(isa, (q * 60, k * 60, v, gradient), [0, 140], float_units=2**14)


@both_types
def test_views_of_larger_tensors_are_read_right(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(70, 4, 16, dtype=dtype)
    q, k, v = qkv[:, :2], qkv[:, 2:3], qkv[:, 3:]
    whole = packed_attention(kernels_of(isa), q.contiguous(), k.contiguous(), v.contiguous(), [0, 70])
    assert torch.equal(packed_attention(kernels_of(isa), q, k, v, [0, 70]), whole)


@both_types
def test_without_gradients_the_values_are_the_same(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v, _ = tensors(80, 2, 1, 64, dtype)
    attend = NativePackedCausal([0, 30, 80], kernels_of(isa))
    trained = attend(0, leaf(q), leaf(k), leaf(v))
    with torch.no_grad():
        plain = attend(0, leaf(q), leaf(k), leaf(v))
    assert trained.requires_grad
    assert not plain.requires_grad
    assert torch.equal(trained, plain)


def test_what_the_kernels_do_not_take_goes_to_torch(isa: str) -> None:
    torch.manual_seed(0)
    q, k, v, _ = tensors(20, 2, 1, 8, torch.float64)
    bounds = [0, 5, 20]
    assert torch.equal(
        NativePackedCausal(bounds, kernels_of(isa))(0, q, k, v), PackedCausal(bounds)(0, q, k, v)
    )
