"""Weights as indices into sixteen levels, with a scale to each group of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from corral.quant.groups import check_codes, check_floats, check_weight, grouped, row_slices, some_rows
from corral.quant.matmul import matmul

_SMALLEST = 1e-38  # what a group of zeros is divided by

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels of 4-bit NormalFloat (Dettmers et al., 2023, arXiv:2305.14314, appendix E)."""

FP4 = (
    0.0,
    0.0625 / 12,
    8 / 12,
    1.0,
    4 / 12,
    6 / 12,
    2 / 12,
    3 / 12,
    0.0,
    -0.0625 / 12,
    -8 / 12,
    -1.0,
    -4 / 12,
    -6 / 12,
    -2 / 12,
    -3 / 12,
)
"""bitsandbytes' 4-bit float, a sign, two bits of exponent and one of fraction, over its largest value, 12.

They lie in the order of their bits, not of their values (bitsandbytes' functional.py, `get_4bit_type`).
"""


@dataclass(frozen=True, eq=False)
class Codebook:
    """A matrix of   scale * levels[code]   with a scale to each group of neighbouring columns.

    Attributes:
        levels: float32 [16].
        group_size: columns that share a scale; it divides the columns, or is all of them.
        codes: uint8 [rows, columns], each below 16.
        scale: [rows, groups], in the precision that the source gives: float16, bfloat16 or float32.

    Raises:
        ValueError: shapes or types do not fit together.
    """

    levels: Tensor
    group_size: int
    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.levels.dtype != torch.float32 or self.levels.shape != (16,):
            raise ValueError(f"levels must be 16 float32, not {self.levels.dtype} {list(self.levels.shape)}")
        check_floats("scale", self.scale, check_codes(self.codes, self.group_size))

    @property
    def shape(self) -> torch.Size:
        """[rows, columns]"""
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [rows, columns]: each level times its scale, in float32, rounded once."""
        rows, columns = self.shape
        result = torch.empty(rows, columns, dtype=dtype, device=self.codes.device)
        for part in row_slices(rows, columns, self.codes.device):
            levels = self.levels.index_select(0, self.codes[part].flatten().long())
            values = levels.view(-1, columns // self.group_size, self.group_size)
            result[part] = values.mul_(self.scale[part, :, None].float()).view(-1, columns)
        return result

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., columns] times the matrix: [..., rows], as `corral.quant.matmul` does it."""
        return matmul(x, self)

    def rows(self, index: Tensor | slice) -> Codebook:
        """Some rows, or all of them in another order: `index` is a slice, or int64 [new rows]."""
        return self._map(lambda tensor: some_rows(tensor, index))

    def to(self, device: torch.device | str) -> Codebook:
        """The same weights on another device."""
        moved = self._map(lambda tensor: tensor.to(device))
        return Codebook(self.levels.to(device), self.group_size, moved.codes, moved.scale)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Codebook:
        return Codebook(self.levels, self.group_size, change(self.codes), change(self.scale))

    @classmethod
    def quantize(cls, weight: Tensor, group_size: int = 64, levels: tuple[float, ...] = NF4) -> Codebook:
        """The nearest levels to a weight [rows, columns] divided by its groups' largest magnitudes.

        `levels` reach from -1 to 1, in any order. Computed in float32 as bitsandbytes does: each value times
        the reciprocal of its group's largest magnitude; half-way between two levels the lower one is taken.

        Raises:
            ValueError: the weight holds what is not finite, or `group_size` does not divide its columns.
        """
        rows, columns = check_weight(weight, group_size)
        table = torch.tensor(levels, device=weight.device)
        rising = table.argsort(stable=True)
        middles = (table[rising[:-1]] + table[rising[1:]]) / 2
        code_of = rising.to(torch.uint8)
        codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
        scale = torch.empty(rows, columns // group_size, device=weight.device)
        for part in row_slices(rows, columns):
            values = grouped(weight[part], group_size)
            largest = scale[part] = values.abs().amax(2)
            shares = (values * (1 / largest.clamp_min(_SMALLEST))[..., None]).clamp_(-1, 1)
            codes[part] = code_of[torch.bucketize(shares, middles, out_int32=True)].view(-1, columns)
        return cls(table, group_size, codes, scale)
