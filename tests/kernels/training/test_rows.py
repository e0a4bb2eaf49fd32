"""Norms, gates and rotations, forward and backward, against float64 and against torch's bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corral.kernels.training.rows import gated, rms_norm, rotate
from corral.model.llama import RMSNorm
from corral.model.rope import rotate as rotate_by_torch
from tests.kernels.training.instruction_sets import both_types, exact_leaf, kernels_of, leaf, near, on_all

pytestmark = on_all

EPS = 1e-5


def torch_norm(weight: Tensor) -> RMSNorm:
    norm = RMSNorm(len(weight), EPS)
    norm.weight = torch.nn.Parameter(weight)
    return norm


@both_types
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (200, 67), (2, 5, 576)])
def test_a_norm_has_torchs_values_and_gradients(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, gradient = 3 * torch.randn(shape), torch.randn(shape[-1:]), torch.randn(shape)
    x, weight, gradient = x.to(dtype), weight.to(dtype), gradient.to(dtype)
    own, own_weight, exact, exact_weight = leaf(x), leaf(weight), exact_leaf(x), exact_leaf(weight)
    out = rms_norm(kernels_of(isa), own, own_weight, EPS)
    torch.autograd.backward(out, gradient)
    wanted = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + EPS) * exact_weight
    torch.autograd.backward(wanted, gradient.double())
    assert own.grad is not None
    assert own_weight.grad is not None
    assert exact.grad is not None
    assert exact_weight.grad is not None
    assert near(out, wanted, 8)
    largest = exact.grad.abs().max().clamp(min=1e-6)  # of one column it is nearly nothing
    assert bool(((own.grad.double() - exact.grad).abs() <= 2**-7 * largest + 1e-6).all())
    assert near(own_weight.grad, exact_weight.grad, 32)


def test_a_norm_rounds_where_torch_rounds(isa: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 576).bfloat16(), torch.randn(576).bfloat16()
    by_torch = torch_norm(weight)(x)
    same = rms_norm(kernels_of(isa), x, weight, EPS) == by_torch
    assert float(same.float().mean()) > 0.999  # but where another order of the sum tips the scale


@both_types
def test_a_gate_has_torchs_values_and_gradients(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up, gradient = (scale * torch.randn(33, 81) for scale in (6, 1, 1))
    gate, up, gradient = gate.to(dtype), up.to(dtype), gradient.to(dtype)
    gate[0, :6] = torch.tensor([0.0, -0.0, 100.0, -100.0, -1000.0, 1000.0])
    own, exact = (leaf(gate), leaf(up)), (exact_leaf(gate), exact_leaf(up))
    out, wanted = gated(kernels_of(isa), *own), F.silu(exact[0]) * exact[1]
    torch.autograd.backward(out, gradient)
    torch.autograd.backward(wanted, gradient.double())
    assert near(out, wanted, 4)
    for got, right in zip(own, exact, strict=True):
        assert got.grad is not None
        assert right.grad is not None
        assert near(got.grad, right.grad, 64 if dtype == torch.float32 else 4)


@both_types
@pytest.mark.parametrize("head_dim", [2, 16, 34, 64, 128])
def test_a_rotation_has_torchs_values_and_gradients(isa: str, dtype: torch.dtype, head_dim: int) -> None:
    torch.manual_seed(0)
    angles = 100 * torch.rand(21, head_dim // 2)
    cos, sin = angles.cos(), angles.sin()
    x, gradient = (torch.randn(21, 3, head_dim, dtype=dtype) for _ in range(2))
    own, exact = leaf(x), exact_leaf(x)
    out = rotate(kernels_of(isa), own, cos, sin)
    wanted = rotate_by_torch(exact, cos.to(dtype), sin.to(dtype))
    torch.autograd.backward(out, gradient)
    torch.autograd.backward(wanted, gradient.double())
    assert own.grad is not None
    assert exact.grad is not None
    assert near(out, wanted, 4)
    assert near(own.grad, exact.grad, 4)


@both_types
def test_threads_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, up, gradient = (torch.randn(500, 4, 32, dtype=dtype) for _ in range(3))
    weight, angles = torch.randn(32, dtype=dtype), torch.rand(500, 16)

    def all_of(threads: int) -> list[Tensor]:
        kernels = kernels_of(isa, threads)
        own, own_up, own_weight = leaf(x), leaf(up), leaf(weight)
        turned = rotate(kernels, own, angles.cos(), angles.sin())
        out = gated(kernels, rms_norm(kernels, turned, own_weight, EPS), own_up)
        torch.autograd.backward(out, gradient)
        grads = [t.grad for t in (own, own_up, own_weight)]
        return [out.detach(), *(grad for grad in grads if grad is not None)]

    first = all_of(1)
    assert len(first) == 4
    for threads in (2, 4):
        for one, other in zip(all_of(threads), first, strict=True):
            assert torch.equal(one, other)


@both_types
def test_a_row_is_the_same_bits_in_any_company(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kernels = kernels_of(isa)
    x, weight = torch.randn(90, 80, dtype=dtype), torch.randn(80, dtype=dtype)
    normed, let_through = rms_norm(kernels, x, weight, EPS), gated(kernels, x, x)
    assert torch.equal(rms_norm(kernels, x[31:34], weight, EPS), normed[31:34])
    assert torch.equal(gated(kernels, x[31:34], x[31:34]), let_through[31:34])
