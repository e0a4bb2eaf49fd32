"""Products with quantized matrices, which are unpacked for the moment, and gone when the product is there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Matrix(Protocol):
    """A quantized matrix [rows, columns]."""

    @property
    def shape(self) -> torch.Size: ...

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor: ...


def matmul(x: Tensor, weight: Matrix) -> Tensor:
    """x [..., columns] times a quantized matrix [rows, columns]: [..., rows], in the type of x.

    Equal to `F.linear(x, weight.dequantize(x.dtype))` but for the order in which products are added. The
    gradient for x is as there; codes and scales have none. Between forward and backward nothing is kept but
    the quantized weights themselves: the backward pass unpacks them anew. Autocast changes nothing, and the
    gradient can't be differentiated again. Nothing waits for the device, and no shape depends on numbers, so
    that CUDA graphs can capture it.

    On CUDA, a few rows of x are multiplied from the packed codes where there is a kernel for them
    (`corral.quant.triton_matmul`).

    Raises:
        ValueError: x is no floating-point tensor, or has another number of columns.
    """
    rows, columns = weight.shape
    if x.dtype not in FLOATS or x.dim() == 0 or x.shape[-1] != columns:
        raise ValueError(
            f"x must hold floats of shape [..., {columns}], not {x.dtype} {list(x.shape)}: the quantized "
            f"matrix is {rows} by {columns}"
        )
    flat = x.reshape(-1, columns)
    if torch.is_grad_enabled() and flat.requires_grad:
        product: Tensor = _Product.apply(flat, weight)  # type: ignore[no-untyped-call]
    else:
        product = _product(flat, weight)
    return product.view(*x.shape[:-1], rows)


class _Product(torch.autograd.Function):
    """x @ weight.T of x [n, columns]; `weight` is no tensor, so that autograd keeps nothing of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Matrix) -> Tensor:
        ctx.weight = weight
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with _no_autocast(gradient.device):
            return gradient @ ctx.weight.dequantize(gradient.dtype), None


def _product(x: Tensor, weight: Matrix) -> Tensor:
    if x.is_cuda:
        from corral.quant.small_products import small_product  # it knows the families, and they this module

        product = small_product(x, weight)
        if product is not None:
            return product
    with _no_autocast(x.device):
        return F.linear(x, weight.dequantize(x.dtype))


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
