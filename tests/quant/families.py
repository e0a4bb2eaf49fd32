"""Random weights of every family, for properties that hold for all."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from corral.quant import FP4, NF4, Affine, Codebook, Float8
from corral.quant.compact import Family

GROUPS = (8, 32, 64)


@st.composite
def families(draw: st.DrawFn, rows: int | None = None, columns: int | None = None) -> Family:
    """A weight of a few rows and up to 192 columns, with scales of one size."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    group = draw(st.sampled_from(GROUPS))
    rows = rows or draw(st.integers(1, 9))
    columns = columns or group * draw(st.integers(1, 3))
    group = group if columns % group == 0 else columns
    weight = torch.randn(rows, columns, generator=generator)
    kind = draw(st.sampled_from(["integers", "zeros", "levels", "floats"]))
    if kind == "levels":
        return Codebook.quantize(weight, group, draw(st.sampled_from([NF4, FP4])))
    if kind == "floats":
        block = draw(st.sampled_from([None, (1, columns), (4, 16), (128, 128)]))
        return Float8.quantize(weight, block)
    bits = draw(st.integers(1, 8))
    made = Affine.quantize(weight, bits, group, draw(st.booleans()))
    order = torch.randperm(columns, generator=generator) if draw(st.booleans()) else None
    zero: int | Tensor = made.zero
    if kind == "zeros":
        kinds = st.sampled_from([torch.uint8, torch.int16, torch.int32])
        zero = torch.randint(0, 1 << bits, made.scale.shape, generator=generator).to(draw(kinds))
    return Affine(bits, group, made.codes, made.scale, zero, made.offset, order)


def example(kind: str, rows: int = 48, columns: int = 128, seed: int = 0) -> Family:
    """One weight of a kind that is told by its name; groups are smaller where the columns ask for it."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    group = min(32, columns & -columns)
    integers = Affine.quantize(weight, 4, group)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(columns, generator=generator)
    zeros = torch.randint(0, 16, integers.scale.shape, generator=generator).to(torch.int16)
    made: dict[str, Family] = {
        "2 bits": Affine.quantize(weight, 2, group, symmetric=False),
        "3 bits": Affine.quantize(weight, 3, group),
        "4 bits": integers,
        "4 bits with offsets": Affine.quantize(weight, 4, group, symmetric=False),
        "4 bits with zeros": Affine(4, group, integers.codes, integers.scale, zeros),
        "4 bits in activation order": Affine(4, group, integers.codes, integers.scale, zeros, order=order),
        "8 bits": Affine.quantize(weight, 8, group),
        "8 bits, a scale to each row": Affine.quantize(weight, 8, columns),
        "nf4": Codebook.quantize(weight, min(64, columns & -columns)),
        "fp4": Codebook.quantize(weight, group, FP4),
        "fp8": Float8.quantize(weight),
        "fp8, a scale to each row": Float8.quantize(weight, (1, columns)),
        "fp8, blocks": Float8.quantize(weight, (32, 48), torch.bfloat16),
    }
    return made[kind]


KINDS = (
    "2 bits",
    "3 bits",
    "4 bits",
    "4 bits with offsets",
    "4 bits with zeros",
    "4 bits in activation order",
    "8 bits",
    "8 bits, a scale to each row",
    "nf4",
    "fp4",
    "fp8",
    "fp8, a scale to each row",
    "fp8, blocks",
)
SMALL_CODES = (*KINDS[:6], "nf4", "fp4")
