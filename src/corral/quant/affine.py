"""Weights as small integers: a scale, and a zero point or an offset, to each group of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corral.quant.groups import (
    check_codes,
    check_floats,
    check_order,
    check_weight,
    grouped,
    narrowed,
    row_slices,
    some_rows,
)
from corral.quant.matmul import matmul

_ZEROS = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True, eq=False)
class Affine:
    """A matrix of   scale * (code - zero) + offset   with a scale to each group of neighbouring columns.

    GGUF's integer types, AWQ, GPTQ and compressed-tensors' integers are all encodings of this.

    Attributes:
        bits: 1 to 8; every code is below 2 to the power of `bits`.
        group_size: columns that share a scale; it divides the columns, or is all of them.
        codes: uint8 [rows, columns].
        scale: [rows, groups], in the precision that the source gives: float16, bfloat16 or float32.
        zero: one integer for all codes, or integers [rows, groups] (uint8, int16 or int32).
        offset: as `scale`, or None for no offset.
        order: int64 [columns], a permutation: the column of the matrix that each column of `codes` is. None
            where they are the same. GPTQ with activation order forms its groups of columns that lie apart;
            with them next to each other, groups are runs here too.

    Raises:
        ValueError: shapes or types do not fit together.
    """

    bits: int
    group_size: int
    codes: Tensor
    scale: Tensor
    zero: int | Tensor = 0
    offset: Tensor | None = None
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"codes have 1 to 8 bits, not {self.bits}")
        shape = check_codes(self.codes, self.group_size)
        check_floats("scale", self.scale, shape)
        if self.offset is not None:
            check_floats("offset", self.offset, shape)
        if isinstance(self.zero, Tensor):
            if self.zero.dtype not in _ZEROS or tuple(self.zero.shape) != shape:
                found = f"{self.zero.dtype} {list(self.zero.shape)}"
                raise ValueError(f"zero must be integers of shape {list(shape)}, not {found}")
        elif not 0 <= self.zero <= 255:
            raise ValueError(f"a constant zero point lies between 0 and 255, not at {self.zero}")
        if self.order is not None:
            check_order(self.order, self.codes.shape[1])

    @property
    def shape(self) -> torch.Size:
        """[rows, columns]"""
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [rows, columns].

        Computed in float32, in this order: code - zero (exact), times scale (rounded), plus offset (rounded);
        then rounded to `dtype`. Columns are put where `order` says.
        """
        rows, columns = self.shape
        result = torch.empty(rows, columns, dtype=dtype, device=self.codes.device)
        for part in row_slices(rows, columns, self.codes.device):
            values = self.codes[part].float().view(-1, columns // self.group_size, self.group_size)
            zero = self.zero[part, :, None].float() if isinstance(self.zero, Tensor) else float(self.zero)
            values.sub_(zero).mul_(self.scale[part, :, None].float())
            if self.offset is not None:
                values.add_(self.offset[part, :, None].float())
            if self.order is None:
                result[part] = values.view(-1, columns)
            else:
                result[part, self.order] = values.view(-1, columns).to(dtype)
        return result

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., columns] times the matrix: [..., rows], as `corral.quant.matmul` does it."""
        if self.order is None:
            return matmul(x, self)
        return matmul(x.index_select(-1, self.order), replace(self, order=None))

    def rows(self, index: Tensor | slice) -> Affine:
        """Some rows, or all of them in another order: `index` is a slice, or int64 [new rows]."""
        return self._map(lambda tensor: some_rows(tensor, index))

    def to(self, device: torch.device | str) -> Affine:
        """The same weights on another device."""
        moved = self._map(lambda tensor: tensor.to(device))
        return moved if self.order is None else replace(moved, order=self.order.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Affine:
        return Affine(
            self.bits,
            self.group_size,
            change(self.codes),
            change(self.scale),
            change(self.zero) if isinstance(self.zero, Tensor) else self.zero,
            None if self.offset is None else change(self.offset),
            self.order,
        )

    @classmethod
    def quantize(cls, weight: Tensor, bits: int, group_size: int, symmetric: bool = True) -> Affine:
        """The nearest codes to a weight [rows, columns], group by group.

        Symmetric: one zero point, in the middle. With 8 bits the scale is the largest magnitude / 127; with
        fewer, the value of the largest magnitude takes the lowest code, so that the range has no unused end
        (as in GGUF's Q4_0). Otherwise offset and scale span the smallest to the largest value (as in Q4_1).
        Scales are float16 where that holds them, and codes are chosen for the scales as they are stored.

        Raises:
            ValueError: the weight holds what is not finite, or `group_size` does not divide its columns.
        """
        rows, columns = check_weight(weight, group_size)
        highest = (1 << bits) - 1
        lowest, zero = (int(bits == 8), 1 << (bits - 1)) if symmetric else (0, 0)
        find = _symmetric if symmetric else _spanning
        found = [find(grouped(weight[part], group_size), bits) for part in row_slices(rows, columns)]
        scale, offset = narrowed(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
        for part in row_slices(rows, columns):
            step = scale[part, :, None].float()
            steps = (grouped(weight[part], group_size) - offset[part, :, None].float()) / step + zero
            steps.masked_fill_(step == 0, zero)  # all values alike, or too small for a scale
            codes[part] = steps.round_().clamp_(lowest, highest).view(-1, columns)
        return cls(bits, group_size, codes, scale, zero, None if symmetric else offset)


def _symmetric(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and offsets (all zero) of groups [rows, groups, group_size]."""
    if bits == 8:
        scale = values.abs().amax(2) / 127
    else:
        scale = values.gather(2, values.abs().argmax(2, keepdim=True)).squeeze(2) / -(1 << (bits - 1))
    return scale, torch.zeros_like(scale)


def _spanning(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and offsets that take in the smallest and the largest value."""
    low, high = values.aminmax(dim=2)
    return (high - low) / ((1 << bits) - 1), low
