"""Grids of integers for groups of weights, as AWQ, GPTQ and compressed-tensors files can hold them.

A value is   scale * (code - zero)   with codes of 0 .. 2^bits - 1. Symmetric: zero is 2^(bits-1), and the
scale is the least at which neither end of a group is cut off. (compressed-tensors' own observer spreads twice
the largest magnitude over all codes, which moves that weight by half a step. It is the one that matters
most: in groups of 32 SmolLM2 loses a third less with it kept.) Otherwise zero is the code of the number 0,
which the range holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.groups import check_weight, grouped, row_slices

_SMALLEST_SCALE = 2.0**-24  # float16's smallest number above zero
_NORM = 2.4  # of the search: between the mean square and the largest error
_STEPS, _LEAST = 100, 0.2  # of the search: ranges down to a fifth of the whole one


@dataclass(frozen=True)
class Grid:
    """The integers that each group of columns is rounded to.

    Attributes:
        bits: 2 to 8.
        group_size: columns of a group.
        scale: [rows, groups], in the type that the format stores; never zero.
        zero: uint8 [rows, groups].
    """

    bits: int
    group_size: int
    scale: Tensor
    zero: Tensor

    @classmethod
    def find(
        cls,
        weight: Tensor,
        bits: int,
        group_size: int,
        *,
        symmetric: bool = True,
        search: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> Grid:
        """The grid of a weight [rows, columns].

        With `search`, of eighty ranges from the whole one down to a fifth of it the one with the least sum
        of |error|^2.4 is taken, group by group.

        Raises:
            ValueError: the weight holds what is not finite, `group_size` does not divide its columns, or
                there are no such bits.
        """
        if not 2 <= bits <= 8:
            raise ValueError(f"a grid has 2 to 8 bits, not {bits}")
        check_weight(weight, group_size)
        found = []
        for part in row_slices(*weight.shape):
            groups = grouped(weight[part], group_size)
            low, high = groups.amin(2).clamp_max(0.0), groups.amax(2).clamp_min(0.0)
            best = _spanning(low, high, bits, symmetric, scale_dtype)
            if search:
                best = _searched(groups, low, high, best, bits, symmetric)
            found.append(best)
        scale, zero = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls(bits, group_size, scale, zero)

    def codes(self, values: Tensor, groups: Tensor | slice) -> Tensor:
        """The nearest codes, as floats, to values [rows, columns]; `groups` says the group of each column."""
        scale, zero = self.scale[:, groups].to(values.dtype), self.zero[:, groups].to(values.dtype)
        return _codes(values, scale, zero, self.bits)

    def values(self, codes: Tensor, groups: Tensor | slice) -> Tensor:
        """What codes [rows, columns] stand for."""
        scale, zero = self.scale[:, groups].to(codes.dtype), self.zero[:, groups].to(codes.dtype)
        return (codes - zero) * scale

    def affine(self, codes: Tensor) -> Affine:
        """Codes [rows, columns] with this grid as a weight."""
        constant = torch.unique(self.zero)
        zero = int(constant) if constant.numel() == 1 else self.zero
        return Affine(self.bits, self.group_size, codes.to(torch.uint8), self.scale, zero)


def round_to_nearest(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    search: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> Affine:
    """A weight [rows, columns] on the grid that `Grid.find` finds, each value for itself."""
    grid = Grid.find(weight, bits, group_size, symmetric=symmetric, search=search, scale_dtype=scale_dtype)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for part in row_slices(*weight.shape):
        step, origin = grid.scale[part, :, None].float(), grid.zero[part, :, None].float()
        codes[part] = _codes(grouped(weight[part], group_size), step, origin, bits).view(-1, codes.shape[1])
    return grid.affine(codes)


def _spanning(
    low: Tensor, high: Tensor, bits: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scale and zero (uint8) of the ranges from `low` <= 0 to `high` >= 0."""
    most = (1 << bits) - 1
    if symmetric:
        middle = 1 << (bits - 1)
        scale = torch.maximum(-low / middle, high / (most - middle))
        zero = torch.full_like(scale, middle)
    else:
        scale = (high - low) / most
        zero = torch.zeros_like(scale)
    scale = scale.clamp_min(_SMALLEST_SCALE).to(scale_dtype)
    if bool(scale.isinf().any()):
        raise ValueError(
            f"the weight has a group whose range is beyond {str(scale_dtype).removeprefix('torch.')}'s"
        )
    if not symmetric:
        zero = (-low / scale.float()).round_().clamp_(0, most)
    return scale, zero.to(torch.uint8)


def _searched(
    groups: Tensor, low: Tensor, high: Tensor, best: tuple[Tensor, Tensor], bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    scale, zero = best
    least = _error(groups, scale, zero, bits)
    for step in range(1, int(_STEPS * (1 - _LEAST))):
        share = 1 - step / _STEPS
        new_scale, new_zero = _spanning(low * share, high * share, bits, symmetric, scale.dtype)
        error = _error(groups, new_scale, new_zero, bits)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, new_scale, scale), torch.where(better, new_zero, zero)
    return scale, zero


def _error(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    step, origin = scale.float()[..., None], zero.float()[..., None]
    rounded = (_codes(groups, step, origin, bits) - origin) * step
    return (rounded - groups).abs_().pow_(_NORM).sum(2)


def _codes(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return (values / scale).add_(zero).round_().clamp_(0, (1 << bits) - 1)
