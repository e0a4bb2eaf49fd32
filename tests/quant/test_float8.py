"""8-bit floats: what they mean, how near the nearest codes are, and rows of blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.quant import Float8

BLOCKS = st.sampled_from([None, (1, 70), (128, 128), (3, 16), (2, 1)])


def random_weight(seed: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[0] = 0
    weight[-1, -1] = 1e4
    return weight


def scale_of_each(weight: Float8) -> torch.Tensor:
    """The scale of each weight, one by one."""
    rows, columns = weight.shape
    height, width = weight.block
    return torch.tensor(
        [[float(weight.scale[r // height, c // width]) for c in range(columns)] for r in range(rows)]
    )


@given(st.integers(0, 2**31), st.integers(1, 9), BLOCKS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_nearest_codes_are_a_sixteenth_of_the_weight_away_at_most(
    seed: int, rows: int, block: tuple[int, int] | None, scale_dtype: torch.dtype
) -> None:
    weight = random_weight(seed, rows, 70)
    quantized = Float8.quantize(weight, block, scale_dtype)
    assert quantized.scale.dtype == scale_dtype
    error = (quantized.dequantize() - weight).abs()
    # Four bits of precision; below 2^-6 a code is a multiple of 2^-9; and a scale that was rounded down to
    # bfloat16 makes the largest value a code too large.
    least = scale_of_each(quantized) * 2**-10
    assert bool((error <= torch.maximum(weight.abs() / 16, least) * 1.001 + weight.abs() * 2**-8).all())


@given(st.integers(0, 2**31), st.integers(1, 9), BLOCKS)
def test_a_weight_is_its_code_times_the_scale_of_its_block(
    seed: int, rows: int, block: tuple[int, int] | None
) -> None:
    quantized = Float8.quantize(random_weight(seed, rows, 70), block)
    expected = quantized.codes.float() * scale_of_each(quantized)
    assert torch.equal(quantized.dequantize(), expected)
    assert torch.equal(quantized.dequantize(torch.bfloat16), expected.bfloat16())


@given(st.data(), st.integers(2, 9), BLOCKS)
def test_rows_are_the_rows_of_the_values(
    data: st.DataObject, rows: int, block: tuple[int, int] | None
) -> None:
    quantized = Float8.quantize(random_weight(0, rows, 70), block)
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    start = data.draw(st.integers(0, rows - 1))
    assert torch.equal(quantized.rows(order).dequantize(), quantized.dequantize()[order])
    assert torch.equal(quantized.rows(slice(start, rows)).dequantize(), quantized.dequantize()[start:])
    twice = quantized.rows(order).rows(slice(start, rows))
    assert torch.equal(twice.dequantize(), quantized.dequantize()[order][start:])


def test_what_activations_are_meant_to_become_goes_along() -> None:
    plain = Float8.quantize(torch.ones(4, 8))
    weight = Float8(plain.codes, plain.scale, plain.block, "token", activation_bound=1200.0)
    for same in (weight.rows(slice(1, 3)), weight.to("cpu")):
        assert (same.activations, same.activation_bound) == ("token", 1200.0)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not Float8.quantize(torch.zeros(3, 5)).dequantize().any()


def test_parts_that_do_not_fit_together_are_refused() -> None:
    codes, one = torch.zeros(2, 32, dtype=torch.float8_e4m3fn), torch.ones(1, 1)
    cases: list[Callable[[], object]] = [
        lambda: Float8(codes.float(), one, (2, 32)),
        lambda: Float8(codes, one, (1, 32)),
        lambda: Float8(codes, one.double(), (2, 32)),
        lambda: Float8(codes, one, (0, 32)),
        lambda: Float8(codes, one, (2, 32), "static"),
        lambda: Float8(codes, one, (2, 32), "token", activation_scale=1.0),
        lambda: Float8.quantize(torch.full((2, 2), float("inf"))),
        lambda: Float8.quantize(torch.ones(3)),
    ]
    for wrong in cases:
        with pytest.raises(ValueError, match=r"float8|shape|float32|block|static|finite"):
            wrong()
