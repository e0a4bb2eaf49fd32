"""Matrix products and linear layers against float64, for every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from corral.kernels.training.linear import linear, mm
from tests.kernels.training.instruction_sets import (
    UNIT,
    both_types,
    exact_leaf,
    kernels_of,
    leaf,
    near,
    on_all,
)

pytestmark = on_all


def matrix(rows: int, columns: int, dtype: torch.dtype, turned: bool) -> Tensor:
    x = torch.randn(columns, rows, dtype=dtype).t() if turned else torch.randn(rows, columns, dtype=dtype)
    assert x.shape == (rows, columns)
    return x


def check(got: Tensor, left: Tensor, right: Tensor, before: Tensor | None = None) -> None:
    """Each number is a sum of products, off by a rounding for each of them, and rounded itself."""
    exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    if before is not None:
        exact, size = exact + before.double(), size + before.double().abs()
    allowed = (left.shape[1] + 2) * 2.0**-23 * size + 2 * UNIT[got.dtype] * exact.abs()
    assert bool(((got.double() - exact).abs() <= allowed).all())


@both_types
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 150),
    st.integers(1, 140),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_products_of_any_shape_and_layout_are_right(
    isa: str,
    dtype: torch.dtype,
    rows: int,
    steps: int,
    columns: int,
    left_turned: bool,
    right_turned: bool,
    add: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    left, right = matrix(rows, steps, dtype, left_turned), matrix(steps, columns, dtype, right_turned)
    room = torch.full((rows, columns + 3), 7.0, dtype=dtype)
    out = room[:, :columns]
    out.copy_(torch.randn(rows, columns))
    before = out.clone() if add else None
    mm(kernels_of(isa), left, right, out, add=add)
    check(out, left, right, before)
    assert bool((room[:, columns:] == 7).all())  # nothing is written beside it


@both_types
@pytest.mark.parametrize(("left_turned", "right_turned"), [(False, True), (False, False), (True, False)])
def test_long_sums_go_through_several_panels(
    isa: str, dtype: torch.dtype, left_turned: bool, right_turned: bool
) -> None:
    torch.manual_seed(0)
    left, right = matrix(7, 4501, dtype, left_turned), matrix(4501, 70, dtype, right_turned)
    check(mm(kernels_of(isa), left, right), left, right)


@both_types
def test_a_gradient_for_many_rows_is_made_thread_by_thread(isa: str, dtype: torch.dtype) -> None:
    """The head's: each thread turns its own share of the left factor."""
    torch.manual_seed(0)
    gradient, x = torch.randn(130, 17_001, dtype=dtype), torch.randn(130, 5, dtype=dtype)
    got = mm(kernels_of(isa), gradient.t(), x)
    check(got, gradient.t(), x)
    assert torch.equal(got, mm(kernels_of(isa, 4), gradient.t(), x))


@both_types
def test_slices_of_matrices_need_no_copy_and_odd_ones_are_right_too(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = torch.randn(20, 101, dtype=dtype)
    for left in (whole[3:9, 1:66], whole[:, 2:66], whole[::2, :64]):
        right = torch.randn(left.shape[1], 33, dtype=dtype)
        check(mm(kernels_of(isa), left, right), left, right)


@both_types
def test_a_row_is_the_same_bits_in_any_company(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(200, 96, dtype=dtype), torch.randn(81, 96, dtype=dtype)
    whole = mm(kernels_of(isa), x, weight.t())
    for rows in (slice(0, 1), slice(7, 9), slice(100, 171)):
        assert torch.equal(mm(kernels_of(isa), x[rows], weight.t()), whole[rows])
    for threads in (1, 4):
        assert torch.equal(mm(kernels_of(isa, threads), x, weight.t()), whole)


@both_types
@pytest.mark.parametrize("trained", [True, False])
def test_a_linear_layer_has_the_gradients_of_torch(isa: str, dtype: torch.dtype, trained: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias, gradient = (
        torch.randn(shape, dtype=dtype) for shape in ((37, 50), (66, 50), (66,), (37, 66))
    )
    own, exact = [leaf(t) for t in (x, weight, bias)], [exact_leaf(t) for t in (x, weight, bias)]
    own[1].requires_grad_(trained)
    y, wanted = linear(kernels_of(isa), *own), F.linear(*exact)
    torch.autograd.backward(y, gradient)
    torch.autograd.backward(wanted, gradient.double())
    assert near(y, wanted, 16)
    for got, right in zip(own, exact, strict=True):
        assert right.grad is not None
        if got.requires_grad:
            assert got.grad is not None
            assert near(got.grad, right.grad, 16)
        else:
            assert got.grad is None


def test_a_frozen_layer_keeps_no_input_and_one_that_starts_keeps_no_weight(isa: str) -> None:
    x, weight = torch.randn(4, 8), torch.randn(6, 8)

    def kept(for_x: bool, for_weight: bool) -> list[bool]:
        own, own_weight = x.clone().requires_grad_(for_x), weight.clone().requires_grad_(for_weight)
        y = linear(kernels_of(isa), own, own_weight)
        assert y.grad_fn is not None
        return [saved is not None for saved in y.grad_fn.saved_tensors]  # type: ignore[attr-defined]

    assert kept(True, False) == [False, True]
    assert kept(False, True) == [True, False]
    assert kept(True, True) == [True, True]


def test_what_the_kernels_do_not_take_goes_to_torch(isa: str) -> None:
    left, right = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    out = torch.ones(3, 5, dtype=torch.float64)
    assert torch.equal(mm(kernels_of(isa), left, right), left @ right)
    assert torch.allclose(mm(kernels_of(isa), left, right, out, add=True), 1 + left @ right)
    assert mm(kernels_of(isa), torch.randn(0, 4), torch.randn(4, 5)).shape == (0, 5)
