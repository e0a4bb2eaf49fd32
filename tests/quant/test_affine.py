"""Affine weights: what they mean, and how near the nearest codes are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corral.quant import Affine

BITS = st.integers(2, 8)
GROUPS = st.sampled_from([1, 5, 16, 32, 48])


@st.composite
def weights(draw: st.DrawFn, group_size: int, symmetric: bool = True) -> Tensor:
    rows, groups = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = 10.0 ** draw(st.integers(-2, 3))
    weight = size * torch.randn(rows, groups * group_size, generator=generator)
    weight[draw(st.integers(0, rows - 1))] = draw(st.sampled_from([0.0, size, -size]))
    return weight if symmetric else weight + size


def by_definition(weight: Affine) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """scale * (code - zero) + offset, in float64."""
    spread = [t.double().repeat_interleave(weight.group_size, 1) for t in (weight.scale, _zero(weight))]
    values = spread[0] * (weight.codes.double() - spread[1])
    if weight.offset is not None:
        values += weight.offset.double().repeat_interleave(weight.group_size, 1)
    return values.numpy()


def _zero(weight: Affine) -> Tensor:
    return weight.zero if isinstance(weight.zero, Tensor) else torch.full(weight.scale.shape, weight.zero)


@given(st.data(), BITS, GROUPS, st.booleans())
def test_the_nearest_codes_are_half_a_scale_away_at_most(
    data: st.DataObject, bits: int, group_size: int, symmetric: bool
) -> None:
    weight = data.draw(weights(group_size, symmetric))
    quantized = Affine.quantize(weight, bits, group_size, symmetric)
    assert int(quantized.codes.max()) < 1 << bits
    steps = quantized.scale.float().abs().repeat_interleave(group_size, 1)
    error = (quantized.dequantize() - weight).abs()
    # With fewer than 8 bits, a value opposite to the extreme one may be clipped: by one step, for the range
    # has one step less on that side. Scales and offsets in float16 are 2^-11 of the values off.
    most = steps if symmetric and bits < 8 else steps / 2
    assert bool((error <= most * 1.001 + weight.abs().max() * 2**-9).all())


@given(st.data(), GROUPS)
def test_dequantizing_follows_the_definition(data: st.DataObject, group_size: int) -> None:
    base = data.draw(weights(group_size))
    shape = (base.shape[0], base.shape[1] // group_size)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    scale = torch.randn(shape, generator=generator).to(
        data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    )
    zero = torch.randint(0, 300, shape, generator=generator, dtype=torch.int16)
    codes = torch.randint(0, 256, base.shape, generator=generator, dtype=torch.uint8)
    offset = data.draw(st.sampled_from([None, torch.randn(shape, generator=generator)]))
    zeros: list[int | Tensor] = [0, 7, zero]
    weight = Affine(8, group_size, codes, scale, data.draw(st.sampled_from(zeros)), offset)
    exact = by_definition(weight)
    assert np.allclose(weight.dequantize().numpy(), exact, rtol=1e-6, atol=np.abs(exact).max() * 2**-22)
    assert torch.equal(weight.dequantize(torch.bfloat16), weight.dequantize().bfloat16())


@given(st.data(), st.booleans())
def test_rows_of_a_quantized_weight_are_the_rows_of_its_values(data: st.DataObject, symmetric: bool) -> None:
    weight = Affine.quantize(data.draw(weights(16)), 4, 16, symmetric)
    order = torch.randperm(weight.shape[0])
    assert torch.equal(weight.rows(order).dequantize(), weight.dequantize()[order])
    assert torch.equal(weight.rows(slice(0, 1)).dequantize(), weight.dequantize()[:1])


def test_scales_keep_the_type_they_came_in() -> None:
    codes = torch.zeros(2, 32, dtype=torch.uint8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert Affine(4, 32, codes, torch.ones(2, 1, dtype=dtype)).rows(slice(1)).scale.dtype == dtype


def test_weights_beyond_float16_get_float32_scales() -> None:
    for size in (1e9, 1e-9):
        weight = torch.full((1, 32), size)
        for symmetric in (True, False):
            quantized = Affine.quantize(weight, 8, 32, symmetric)
            assert torch.allclose(quantized.dequantize(), weight, rtol=0.01, atol=0)


def test_a_row_of_tiny_values_does_not_widen_the_scales_of_the_others() -> None:
    weight = torch.stack((torch.randn(32), torch.full((32,), 1e-20)))
    quantized = Affine.quantize(weight, 8, 32)
    assert quantized.scale.dtype == torch.float16
    assert float(quantized.dequantize()[1].abs().max()) < 1e-6


def test_eight_bits_lose_less_than_four_and_an_offset_helps_what_is_lopsided() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def error(bits: int, symmetric: bool, of: Tensor) -> float:
        return float((Affine.quantize(of, bits, 32, symmetric).dequantize() - of).norm() / of.norm())

    assert error(8, True, weight) < 0.006
    assert error(4, True, weight) < 0.1
    assert error(4, False, weight) < 0.09
    assert error(4, False, weight.abs()) < 0.6 * error(4, True, weight.abs())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    weight = torch.zeros(2, 32)
    weight[1, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        Affine.quantize(weight, 4, 32)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    codes = torch.zeros(2, 32, dtype=torch.uint8)
    ones = torch.ones(2, 1)
    cases: list[Callable[[], object]] = [
        lambda: Affine(9, 32, codes, ones),
        lambda: Affine(4, 24, codes, ones),
        lambda: Affine(4, 32, codes.int(), ones),
        lambda: Affine(4, 16, codes, ones),
        lambda: Affine(4, 32, codes, ones.double()),
        lambda: Affine(4, 32, codes, ones, 256),
        lambda: Affine(4, 32, codes, ones, torch.ones(2, 2, dtype=torch.uint8)),
        lambda: Affine(4, 32, codes, ones, 0, torch.ones(1, 1)),
        lambda: Affine.quantize(torch.ones(2, 30), 4, 32),
    ]
    for wrong in cases:
        with pytest.raises(ValueError, match=r"bits|divide|matrix|shape|float32|zero"):
            wrong()
