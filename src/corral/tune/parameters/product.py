"""A frozen linear layer and the low-rank product beside it, as one operation that keeps little.

Of LoRA (Hu et al., 2021, arXiv:2106.09685), y = x W^T + scale * (x A^T) B^T, the backward pass needs x and
the narrow x A^T, and no more: W is frozen. Ops one by one would keep a float32 copy of x where A and B are in
float32, and take two more passes over y and over the gradient of x.

Letters in shapes: T rows, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from corral.model.llama import Linear, mm
from corral.quant.groups import row_slices
from corral.quant.linear import QuantizedLinear
from corral.tune.parameters.targets import LinearLayer


def adapted(
    linear: LinearLayer,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    dropout: float = 0.0,
    *,
    biased: bool = True,
) -> Tensor:
    """What a linear layer and the adapter a [R, I], b [O, R] make of x [T, I]: [T, O], in the type of x.

    `dropout` sets that share of what enters the adapter to zero, and scales the rest up. Without `biased` the
    layer's bias is left out. Gradients go to x, a and b; to the layer's own weights too, where it has such as
    are trained.
    """
    if torch.compiler.is_compiling() or not is_frozen(linear):
        base: Tensor = linear(x) if biased else bare(linear, x)
        return base + low_rank(x, a, b, scale, dropout)
    weight = None if isinstance(linear, QuantizedLinear) else linear.weight
    output: Tensor = _Adapted.apply(x, a, b, weight, linear, scale, dropout, biased)  # type: ignore[no-untyped-call]
    return output


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """What the adapter alone makes of x [T, I]: [T, O]."""
    if torch.compiler.is_compiling():
        inner = F.linear(F.dropout(x, dropout), a.to(x.dtype))
        return F.linear(inner, b.to(x.dtype)) * scale
    output: Tensor = _Adapted.apply(x, a, b, None, None, scale, dropout, False)  # type: ignore[no-untyped-call]
    return output


def bare(linear: LinearLayer, x: Tensor) -> Tensor:
    """What a linear layer makes of x without its bias."""
    if isinstance(linear, QuantizedLinear):
        return linear.compact.matmul(x)
    if type(linear) in (Linear, nn.Linear):
        return F.linear(x, linear.weight)
    output: Tensor = linear(x)
    return output if linear.bias is None else output - linear.bias


def product_of(linear: nn.Module | None) -> Callable[..., Tensor]:
    """How a layer's matrices are multiplied: see `corral.model.llama.Linear.mm`."""
    return linear.mm if isinstance(linear, Linear) else mm


def is_frozen(linear: LinearLayer) -> bool:
    """Whether a layer is a matrix, dense or quantized, that is whole on this device and is not trained."""
    if linear.bias is not None and linear.bias.requires_grad:
        return False
    if isinstance(linear, QuantizedLinear):
        return True
    if type(linear) not in (Linear, nn.Linear):
        return False
    return type(linear.weight) in (nn.Parameter, Tensor) and not linear.weight.requires_grad


def scaled(x: Tensor, factors: Tensor) -> Tensor:
    """x [T, O] times a float32 factor for each column, rounded once: [T, O], in the type of x."""
    if torch.compiler.is_compiling():
        return (x * factors).to(x.dtype)
    output: Tensor = _Scaled.apply(x, factors)  # type: ignore[no-untyped-call]
    return output


def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The lengths [O] of the rows of W + scale * b a, in float32 or better, for W [O, I].

    No gradient goes through them: DoRA takes them as constants (Liu et al., 2024, arXiv:2402.09353, section
    4.3). Some rows are computed at a time, so that no second W exists.
    """
    with torch.no_grad():
        exact = torch.promote_types(weight.dtype, torch.float32)
        a, b = a.to(exact), b.to(exact)
        norms = torch.empty(len(weight), dtype=exact, device=weight.device)
        for rows in row_slices(len(weight), weight.shape[1], weight.device):
            merged = weight[rows].to(exact, copy=True)
            torch.addmm(merged, b[rows], a, alpha=scale, out=merged)  # a form that no checkpointing keeps
            norms[rows] = torch.linalg.vector_norm(merged, dim=1)
        return norms


class _Adapted(torch.autograd.Function):
    """Without a layer, the low-rank product alone. `linear` is no tensor: autograd keeps nothing of it but
    the weight that is given beside it, where it is dense."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weight: Tensor | None,
        linear: LinearLayer | None,
        scale: float,
        dropout: float,
        biased: bool,
    ) -> Tensor:
        kept = None
        if dropout > 0:
            kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - dropout)
            scale = scale / (1 - dropout)
        product = product_of(linear)
        inner = product(x if kept is None else x * kept, a.to(x.dtype).t())  # [T, R]
        right = b.to(x.dtype).t()  # [R, O]
        ctx.save_for_backward(x, inner, a, b, weight, kept)
        ctx.linear, ctx.scale = linear, scale
        if linear is None:
            return product(inner * scale, right)
        output = linear(x) if biased else bare(linear, x)
        # Selective checkpointing may have kept `output` as it is, and need not keep the sum as well.
        into = torch.empty_like(output) if is_in_torch_dispatch_mode() else output
        if product is mm or into is not output:
            return torch.addmm(output, inner, right, alpha=scale, out=into)
        return product(inner * scale, right, output, add=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, a, b, weight, kept = ctx.saved_tensors
        for_x, for_a, for_b = ctx.needs_input_grad[:3]
        of_x = of_a = of_b = None
        product = product_of(ctx.linear)
        of_inner = product(gradient, b.to(gradient.dtype)).mul_(ctx.scale)  # [T, R]
        if for_b:
            of_b = product(gradient.t(), inner).to(b.dtype).mul_(ctx.scale)
        if for_a:
            of_a = product(of_inner.t(), x if kept is None else x * kept).to(a.dtype)
        if for_x:
            of_x = _through(ctx.linear, weight, gradient)
            left = a.to(gradient.dtype)
            if kept is not None:
                of_adapter = product(of_inner, left).mul_(kept)
                of_x = of_adapter if of_x is None else of_x.add_(of_adapter)
            else:
                of_x = product(of_inner, left) if of_x is None else product(of_inner, left, of_x, add=True)
        return of_x, of_a, of_b, None, None, None, None, None


def _through(linear: LinearLayer | None, weight: Tensor | None, gradient: Tensor) -> Tensor | None:
    """The gradient [T, I] that a frozen layer passes on from that of its output [T, O]."""
    if weight is not None:
        return product_of(linear)(gradient, weight)
    if isinstance(linear, QuantizedLinear):
        return torch.mm(gradient, linear.compact.dequantize(gradient.dtype))
    return None


class _Scaled(torch.autograd.Function):
    """Keeps x as it is, where multiplying float32 into it would keep a float32 copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, factors)
        return (x * factors).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, factors = ctx.saved_tensors
        for_x, for_factors = ctx.needs_input_grad
        of_x = (gradient * factors).to(x.dtype) if for_x else None
        of_factors = (gradient.to(factors.dtype) * x).sum(0) if for_factors else None
        return of_x, of_factors
