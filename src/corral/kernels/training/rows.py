"""RMSNorm, SwiGLU's gate and rotary embeddings, each a single pass forward and a single one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from corral.kernels.training.calls import Gate, Norm, Rotation
from corral.kernels.training.kernels import TYPES, TrainingKernels


def rms_norm(kernels: TrainingKernels, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] normalized, times weight [D], rounded where `corral.model.llama.RMSNorm` rounds.

    Keeps the input and a float32 for each row.
    """
    output: Tensor = _Norm.apply(kernels, x, weight, eps)  # type: ignore[no-untyped-call]
    return output


def gated(kernels: TrainingKernels, gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape; computed in float32, rounded once. Keeps both."""
    output: Tensor = _Gate.apply(kernels, gate, up)  # type: ignore[no-untyped-call]
    return output


def rotate(kernels: TrainingKernels, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys x [T, heads, E] rotated by float32 cos and sin [T, E / 2]: `corral.model.rope.rotate`.

    Cosines and sines are rounded to the type of x, the result once. Keeps nothing of x, to which alone
    gradients go.
    """
    output: Tensor = _Rotation.apply(kernels, x, cos, sin)  # type: ignore[no-untyped-call]
    return output


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: TrainingKernels, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        scales = torch.empty(x.shape[:-1], dtype=torch.float32)
        call = _norm(x, weight, scales, eps)
        call.out = out.data_ptr()
        kernels.run("norm_rows", call)
        ctx.save_for_backward(x, weight, scales)
        ctx.kernels, ctx.eps = kernels, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        out_grad = out_grad.contiguous()
        x_grad = torch.empty_like(x)
        weight_grad = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        call = _norm(x, weight, scales, ctx.eps)
        call.out_grad, call.x_grad = out_grad.data_ptr(), x_grad.data_ptr()
        call.weight_grad = None if weight_grad is None else weight_grad.data_ptr()
        ctx.kernels.run("norm_rows_backward", call)
        return None, x_grad, weight_grad, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: TrainingKernels, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        assert gate.shape == up.shape, "a gate for each element"
        out = torch.empty_like(gate)
        call = _gate(gate, up)
        call.out = out.data_ptr()
        kernels.run("gate_elements", call)
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        out_grad = out_grad.contiguous()
        gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
        call = _gate(gate, up)
        call.out_grad = out_grad.data_ptr()
        call.gate_grad, call.up_grad = gate_grad.data_ptr(), up_grad.data_ptr()
        ctx.kernels.run("gate_elements_backward", call)
        return None, gate_grad, up_grad


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: TrainingKernels, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return _rotated(kernels, x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, _rotated(ctx.kernels, out_grad, *ctx.saved_tensors, back=True), None, None


def _rotated(kernels: TrainingKernels, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    assert cos.dtype == sin.dtype == torch.float32, "cosines and sines are float32"
    assert cos.shape == sin.shape == (x.shape[0], x.shape[2] // 2), "a cosine for each token and pair"
    out = torch.empty_like(x)
    call = Rotation(
        type=TYPES[x.dtype],
        heads=x.shape[1],
        head_dim=x.shape[2],
        back=back,
        rows=x.shape[0],
        x=x.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        out=out.data_ptr(),
    )
    kernels.run("rotate_heads", call)
    return out


def _norm(x: Tensor, weight: Tensor, scales: Tensor, eps: float) -> Norm:
    assert weight.shape == x.shape[-1:], "a weight for each column"
    return Norm(
        type=TYPES[x.dtype],
        eps=eps,
        rows=scales.numel(),
        columns=x.shape[-1],
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        scales=scales.data_ptr(),
    )


def _gate(gate: Tensor, up: Tensor) -> Gate:
    return Gate(type=TYPES[gate.dtype], count=gate.numel(), gate=gate.data_ptr(), up=up.data_ptr())
