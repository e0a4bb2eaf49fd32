"""Weights as 8-bit floats, with a scale to the whole matrix, to each row, or to each block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from corral.quant.groups import check_floats, check_weight, row_slices
from corral.quant.matmul import matmul

LARGEST = 448.0
"""The largest magnitude of float8_e4m3fn."""

Activations = Literal["none", "tensor", "token", "group", "static"]


@dataclass(frozen=True, eq=False)
class Float8:
    """A matrix of   code * scale   with a scale to each block of neighbouring rows and columns.

    One block is the whole matrix for a scale per tensor, (1, columns) for one per row, (128, 128) for what is
    called block quantization; the last blocks of a row or column may be smaller. What the makers of a
    checkpoint meant to happen to activations is kept beside the weights, for kernels that multiply in 8 bits.

    Attributes:
        codes: float8_e4m3fn [rows, columns].
        scale: [block rows, block columns], in the precision that the source gives: float16, bfloat16 or
            float32.
        block: rows and columns of a block.
        activations: "none": in 16 bits; "tensor", "token", "group": 8-bit floats with a scale found at run
            time, of all, of each token, of each token and block of columns; "static": with
            `activation_scale`.
        activation_bound: the largest magnitude that a scale found at run time is made for, or None.
        activation_scale: the scale of "static".

    Raises:
        ValueError: shapes or types do not fit together.
    """

    codes: Tensor
    scale: Tensor
    block: tuple[int, int]
    activations: Activations = "none"
    activation_bound: float | None = None
    activation_scale: float | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.float8_e4m3fn or self.codes.dim() != 2:
            found = f"{self.codes.dtype} {list(self.codes.shape)}"
            raise ValueError(f"codes must be a matrix of float8_e4m3fn, not {found}")
        if min(self.block) < 1:
            raise ValueError(f"a block has rows and columns, not {list(self.block)}")
        check_floats("scale", self.scale, blocks_of(self.codes.shape, self.block))
        if (self.activations == "static") != (self.activation_scale is not None):
            raise ValueError("activation_scale goes with static activations, and only with them")

    @property
    def shape(self) -> torch.Size:
        """[rows, columns]"""
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [rows, columns]: each code times its scale, rounded to float32, and then to `dtype`."""
        rows, columns = self.shape
        result = torch.empty(rows, columns, dtype=dtype, device=self.codes.device)
        for part in row_slices(rows, columns, self.codes.device):
            result[part] = _floats(self.codes[part]).mul_(self._spread_scale(part))
        return result

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., columns] times the matrix: [..., rows], as `corral.quant.matmul` does it."""
        return matmul(x, self)

    def rows(self, index: Tensor | slice) -> Float8:
        """Some rows, or all of them in another order: `index` is a slice, or int64 [new rows].

        Where a block has several rows but not all, the new weight has a scale for each row, for rows of
        different blocks may now lie next to each other.
        """
        codes = self.codes.view(torch.uint8)  # indexing knows no 8-bit floats on some devices
        chosen = codes[index] if isinstance(index, slice) else codes.index_select(0, index)
        codes = chosen.view(torch.float8_e4m3fn)
        if self.scale.shape[0] == 1:
            scale = self.scale[: min(1, len(codes))]
            return replace(self, codes=codes, scale=scale, block=(max(1, len(codes)), self.block[1]))
        where = torch.arange(self.shape[0], device=self.codes.device)[index] // self.block[0]
        return replace(self, codes=codes, scale=self.scale[where], block=(1, self.block[1]))

    def to(self, device: torch.device | str) -> Float8:
        """The same weights on another device."""
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device))

    @classmethod
    def quantize(
        cls, weight: Tensor, block: tuple[int, int] | None = None, scale_dtype: torch.dtype = torch.float32
    ) -> Float8:
        """The nearest codes to a weight [rows, columns]; `block` defaults to the whole matrix.

        A scale is its block's largest magnitude / 448, rounded to `scale_dtype`, and 1 where that is zero.
        Codes are chosen for the scales as they are stored, by one division in float32.

        Raises:
            ValueError: the weight is no matrix, or holds what is not finite.
        """
        rows, columns = check_weight(weight, 1)
        block = block or (max(1, rows), max(1, columns))
        scale = (_largest(weight, block) / LARGEST).to(scale_dtype)
        scale.masked_fill_(scale == 0, 1)
        empty = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=weight.device)
        quantized = cls(empty, scale, block)
        for part in row_slices(rows, columns):
            values = weight[part].float() / quantized._spread_scale(part)
            empty[part] = values.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return quantized

    def _spread_scale(self, part: slice) -> Tensor:
        """The float32 scales of the weights of some rows, [rows, columns] or [rows, 1]."""
        rows = torch.arange(part.start, part.stop, device=self.scale.device) // self.block[0]
        scale = self.scale[rows].float()
        if scale.shape[1] == 1:
            return scale
        return scale.repeat_interleave(self.block[1], 1)[:, : self.shape[1]]


def blocks_of(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks lie below each other, and side by side."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _floats(codes: Tensor) -> Tensor:
    """8-bit floats as float32. On a CPU, where torch converts them one by one, they are looked up."""
    if codes.device.type != "cpu":
        return codes.float()
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return table.index_select(0, codes.view(torch.uint8).flatten().long()).view(codes.shape)


def _largest(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitudes of blocks, float32 [block rows, block columns]."""
    rows, columns = weight.shape
    result = torch.zeros(blocks_of((rows, columns), block), device=weight.device)
    for row, start in enumerate(range(0, rows, block[0])):
        stripe = weight[start : start + block[0]]
        peaks = torch.stack([stripe[part].abs().amax(0) for part in row_slices(*stripe.shape)]).amax(0)
        for column, first in enumerate(range(0, columns, block[1])):
            result[row, column] = peaks[first : first + block[1]].max().float()
    return result
