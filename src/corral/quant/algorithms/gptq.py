"""GPTQ (Frantar et al., 2022, arXiv:2210.17323): columns are rounded one after the other, and what each is
off by is made up for by those that follow, as far as the inputs of the layer are correlated.

With X the inputs [tokens, columns], the squared error of the layer's output is tr(E H E^T) with H = X^T X and
E the error of the weight. When column i has been rounded, the best change of the columns after it is along
row i of the upper Cholesky factor U of the inverse of H, divided by U[i, i].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.algorithms.grid import Grid
from corral.quant.groups import check_weight

_ATTEMPTS = 8  # to factor the Hessian, each with ten times the damping


class Hessian:
    """The mean of 2 x x^T over inputs, added up in float32 as they come: [columns, columns]."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(columns, columns, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Counts inputs [tokens, columns] in."""
        count = inputs.shape[0]
        if count == 0:
            return
        x = inputs.float()
        self.matrix.mul_(self.tokens / (self.tokens + count))
        self.tokens += count
        self.matrix.addmm_(x.T, x, alpha=2.0 / self.tokens)


@dataclass(frozen=True)
class GptqOptions:
    """How GPTQ goes about it; the defaults are those of llm-compressor.

    Attributes:
        block_size: columns whose errors are carried over to the later ones together: speed alone.
        damping: this share of the Hessian's mean diagonal is added to it, so that it can be inverted.
        activation_order: take the columns with the largest inputs first. The groups stay runs of columns,
            whose grids are found before anything is moved, so that the result needs no order of its own.
        search: the grids' ranges are searched, see `Grid.find`.
    """

    block_size: int = 128
    damping: float = 0.01
    activation_order: bool = True
    search: bool = False


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.float16,
    options: GptqOptions = GptqOptions(),
) -> Affine:
    """A weight [rows, columns] quantized for inputs of a Hessian [columns, columns].

    Computed in the Hessian's type, float32 or float64. `scale_dtype` is that of the scales.

    Raises:
        ValueError: shapes do not fit, or the weight or the Hessian holds what is not finite.
    """
    _, columns = check_weight(weight, group_size)
    if hessian.shape != (columns, columns) or not bool(torch.isfinite(hessian).all()):
        raise ValueError(f"the Hessian must be finite numbers [{columns}, {columns}]")
    hessian = hessian.clone()
    unused = hessian.diagonal() == 0  # their inputs are always zero: any code will do, and 0 is in reach
    hessian.diagonal()[unused] = 1.0
    rest = weight.to(hessian.dtype).masked_fill(unused, 0.0)
    grid = Grid.find(
        rest, bits, group_size, symmetric=symmetric, search=options.search, scale_dtype=scale_dtype
    )
    order = torch.arange(columns, device=weight.device)
    if options.activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    factor = _inverse_factor(hessian, options.damping)
    codes = torch.empty_like(rest)
    codes[:, order] = _round_columns(rest[:, order], factor, grid, order // group_size, options.block_size)
    return grid.affine(codes)


def _round_columns(rest: Tensor, factor: Tensor, grid: Grid, groups: Tensor, block_size: int) -> Tensor:
    """Codes of the columns of `rest` [rows, columns], whose group each is; `rest` is used up."""
    codes = torch.empty_like(rest)
    columns = rest.shape[1]
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        block, upper = rest[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(block)
        for i in range(end - start):
            column, group = block[:, i : i + 1], groups[start + i : start + i + 1]
            code = grid.codes(column, group)
            error = (column - grid.values(code, group)) / upper[i, i]
            block[:, i + 1 :] -= error @ upper[i : i + 1, i + 1 :]
            codes[:, start + i : start + i + 1], errors[:, i : i + 1] = code, error
        rest[:, end:] -= errors @ factor[start:end, end:]
    return codes


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of a Hessian, damped as much as that takes."""
    mean = hessian.diagonal().mean()
    for attempt in range(_ATTEMPTS):
        factor = hessian.clone()  # of several gigabytes for wide layers: each step writes where the last did
        factor.diagonal().add_(damping * 10**attempt * mean)
        failed = torch.zeros((), dtype=torch.int32, device=hessian.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if failed:
            continue
        torch.cholesky_inverse(factor, out=factor)
        torch.linalg.cholesky_ex(factor, upper=True, out=(factor, failed))
        if not failed:
            return factor
    raise ValueError("the Hessian is not positive: its inputs are no sums of squares")
