"""Attention over documents side by side, forward and backward, without a matrix of scores."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from corral.kernels.training.calls import Attention
from corral.kernels.training.kernels import TYPES, TrainingKernels, takes
from corral.model.attention import PackedCausal


def packed_attention(
    kernels: TrainingKernels, q: Tensor, k: Tensor, v: Tensor, bounds: Sequence[int]
) -> Tensor:
    """Causal attention within documents: q [T, H, E], k and v [T, K, E] give [T, H, E].

    Documents begin at `bounds` [documents + 1], which ends with T. Query heads h * H / K and on share
    key-value head h. What a document's tokens get depends on no other document, bit for bit. The tensors are
    float32 or bfloat16; scores, sums and gradients are summed in float32. The backward pass keeps the inputs,
    the output and a float32 [T, H].
    """
    output: Tensor = _PackedAttention.apply(kernels, q, k, v, tuple(bounds))  # type: ignore[no-untyped-call]
    return output


class NativePackedCausal(PackedCausal):
    """`PackedCausal` by native kernels; by torch for tensors that they do not take."""

    def __init__(self, bounds: Sequence[int], kernels: TrainingKernels) -> None:
        super().__init__(bounds)
        self._kernels = kernels

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not takes(q, k, v):
            return super().__call__(layer, q, k, v)
        return packed_attention(self._kernels, q, k, v, self.bounds)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: TrainingKernels, q: Tensor, k: Tensor, v: Tensor, bounds: tuple[int, ...]
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        assert bounds[-1] == len(q) == len(k) == len(v), "bounds end with the last token"
        assert q.shape[1] % k.shape[1] == 0, "each key-value head serves as many query heads"
        assert q.shape[2] == k.shape[2] == v.shape[2], "heads are of one size"
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32)
        kernels.run("attend_packed", _call(q, k, v, out, lse, _places(bounds)))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.kernels, ctx.bounds = kernels, bounds
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        out_grad = out_grad.contiguous()
        grads = [torch.empty_like(x) for x in (q, k, v)]
        call = _call(q, k, v, out, lse, _places(ctx.bounds))
        call.out_grad = out_grad.data_ptr()
        call.q_grad, call.k_grad, call.v_grad = (grad.data_ptr() for grad in grads)
        ctx.kernels.run("attend_packed_backward", call)
        return (None, *grads, None)


def _places(bounds: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(bounds))(*bounds)


def _call(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, places: ctypes.Array[ctypes.c_int64]
) -> Attention:
    call = Attention(
        type=TYPES[q.dtype],
        q_heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        scale=1 / math.sqrt(q.shape[2]),
        documents=len(places) - 1,
        bounds=ctypes.addressof(places),
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        lse=lse.data_ptr(),
    )
    call.places = places  # which the structure does not keep alive by itself
    return call
