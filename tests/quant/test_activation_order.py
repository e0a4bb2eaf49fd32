"""Affine weights whose groups are formed of columns that lie apart, and FP4."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.quant import FP4, Affine, Codebook


def in_order(seed: int, rows: int = 5, columns: int = 24, group_size: int = 8) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns // group_size)
    return Affine(
        4,
        group_size,
        torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8),
        torch.randn(shape, generator=generator),
        torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8),
        torch.randn(shape, generator=generator),
        torch.randperm(columns, generator=generator),
    )


@given(st.integers(0, 2**31))
def test_columns_are_put_where_the_order_says(seed: int) -> None:
    weight = in_order(seed)
    assert weight.order is not None
    plain = Affine(4, 8, weight.codes, weight.scale, weight.zero, weight.offset).dequantize()
    values = weight.dequantize()
    for stored, column in enumerate(weight.order.tolist()):
        assert torch.equal(values[:, column], plain[:, stored])
    assert torch.equal(weight.dequantize(torch.bfloat16), values.bfloat16())


def test_rows_and_devices_keep_the_order() -> None:
    weight = in_order(0)
    assert torch.equal(weight.rows(slice(1, 4)).dequantize(), weight.dequantize()[1:4])
    rows = torch.tensor([4, 0, 2])
    assert torch.equal(weight.rows(rows).to("cpu").dequantize(), weight.dequantize()[rows])


def test_an_order_that_is_no_permutation_is_refused() -> None:
    weight = in_order(0)
    for order in (torch.zeros(24, dtype=torch.int64), torch.arange(23), torch.arange(24, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"order must"):
            Affine(4, 8, weight.codes, weight.scale, weight.zero, order=order)


@given(st.integers(0, 2**31))
def test_levels_in_any_order_are_found_by_their_values(seed: int) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    weight[0, :3] = torch.tensor([0.0, 1e-9, -1e-9])
    quantized = Codebook.quantize(weight, 32, FP4)
    shares = (weight.view(3, 2, 32) / quantized.scale[..., None])[..., None]
    nearest = (shares - torch.tensor(FP4)).abs().amin(-1)
    taken = (shares[..., 0] - quantized.levels[quantized.codes.long()].view(3, 2, 32)).abs()
    assert torch.allclose(taken, nearest, atol=1e-6)
