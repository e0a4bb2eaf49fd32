"""Matrix products, and linear layers made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from corral.kernels.training.calls import Product
from corral.kernels.training.kernels import TYPES, TrainingKernels, takes
from corral.model import llama


def mm(
    kernels: TrainingKernels, left: Tensor, right: Tensor, out: Tensor | None = None, *, add: bool = False
) -> Tensor:
    """left [M, S] times right [S, N]: [M, N]. Either may be a transposed view.

    Each number is summed in float32, in an order that depends on S alone. With `out`, [M, N] with its columns
    side by side, the product is written, or added, to it. Outside of autograd, as `torch.mm(out=...)` is;
    torch computes what the kernels do not take.
    """
    if not takes(left, right) or not (out is None or takes(out, left)):
        return llama.mm(left, right, out, add=add)
    (left, left_turned), (right, right_turned) = _lines(left), _lines(right)
    rows, steps = left.shape[::-1] if left_turned else left.shape
    columns = right.shape[0] if right_turned else right.shape[1]
    assert steps == (right.shape[1] if right_turned else right.shape[0]), "rows of the right factor"
    if out is None:
        assert not add, "nothing to add to"
        out = torch.empty(rows, columns, dtype=left.dtype)
    assert out.shape == (rows, columns), "a number for each row and column"
    assert columns == 1 or out.stride(1) == 1, "columns lie side by side"
    call = Product(
        type=TYPES[left.dtype],
        left_turned=left_turned,
        right_turned=right_turned,
        add=add,
        rows=rows,
        columns=columns,
        steps=steps,
        left=left.data_ptr(),
        right=right.data_ptr(),
        out=out.data_ptr(),
        left_stride=left.stride(0),
        right_stride=right.stride(0),
        out_stride=out.stride(0),
    )
    kernels.run("multiply", call)
    return out


def linear(kernels: TrainingKernels, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, I] times weight [O, I] transposed, plus bias [O]: [T, O], with gradients for all three.

    Keeps x only where the weight is trained, and never more than x and the weight.
    """
    output: Tensor = _Linear.apply(kernels, x, weight)  # type: ignore[no-untyped-call]
    return output if bias is None else output + bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: TrainingKernels, x: Tensor, weight: Tensor) -> Tensor:
        _, for_x, for_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.kernels = kernels
        return mm(kernels, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None if weight is None else mm(ctx.kernels, gradient, weight)
        of_weight = None if x is None else mm(ctx.kernels, gradient.t(), x)
        return None, of_x, of_weight


def _lines(x: Tensor) -> tuple[Tensor, bool]:
    """The matrix as lines of neighbouring elements, and whether these are its columns."""
    if x.stride(1) == 1:
        return x, False
    if x.stride(0) == 1:
        return x.t(), True
    return x.contiguous(), False
