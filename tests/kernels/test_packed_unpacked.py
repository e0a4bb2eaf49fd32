"""Families that no packed layout holds are packed as bfloat16, a stretch of rows at a time."""

from __future__ import annotations

import pytest
import torch

from corral.kernels.layout import Codes
from corral.kernels.packed import can_join, pack, pack_rows
from corral.quant import Affine, Float8, Weight


def float8(rows: int, block: tuple[int, int] | None = None) -> Float8:
    return Float8.quantize(torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)), block)


def in_activation_order(rows: int) -> Affine:
    made = Affine.quantize(torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)), 4, 32)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    return Affine(4, 32, made.codes, made.scale, made.zero, order=order)


@pytest.mark.parametrize(
    "weight",
    [float8(33), float8(5, (1, 96)), float8(40, (16, 32)), float8(1), in_activation_order(37)],
    ids=["tensor", "row", "block", "one row", "activation order"],
)
def test_weights_are_rounded_once(weight: Affine | Float8) -> None:
    packed = pack(weight)
    assert packed.layout.codes is Codes.BF16
    assert torch.equal(packed.dequantize(), weight.dequantize(torch.bfloat16).float())


def test_they_are_packed_below_each_other_and_below_bfloat16() -> None:
    plain = torch.randn(7, 96).bfloat16()
    weights: list[Weight] = [float8(33, (16, 32)), in_activation_order(20), plain, float8(3)]
    assert can_join(weights)
    expected = [
        w.float() if isinstance(w, torch.Tensor) else w.dequantize(torch.bfloat16).float() for w in weights
    ]
    assert torch.equal(pack_rows(weights).dequantize(), torch.cat(expected))


def test_they_are_not_packed_with_what_is_quantized() -> None:
    assert not can_join([float8(16), Affine.quantize(torch.randn(16, 96), 4, 32)])


def test_large_ones_are_made_stretch_by_stretch() -> None:
    weight = Float8.quantize(torch.randn(1501, 1024), (128, 128))
    assert torch.equal(pack(weight).dequantize(), weight.dequantize(torch.bfloat16).float())
