"""Products with quantized weights: those of the weights that they stand for, forwards and backwards."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from types import ModuleType

import bitsandbytes
import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from corral.quant import Affine, Codebook, small_products
from corral.quant.compact import Compact, Family
from corral.quant.encodings import bitsandbytes as encoding
from tests.quant.families import KINDS, example, families

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
SHAPES = st.sampled_from([(), (1,), (5,), (2, 3), (0,), (2, 0, 3)])


def random_input(shape: tuple[int, ...], columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(got: Tensor, expected: Tensor) -> bool:
    """Equal but for the order of sums, whose terms are of the size of 1."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    bound = ROUNDING[got.dtype] * max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    return torch.allclose(got.double(), expected.double(), rtol=ROUNDING[got.dtype], atol=bound)


@given(families(), SHAPES, st.sampled_from(list(ROUNDING)), st.booleans())
@settings(max_examples=100, deadline=None)
def test_it_is_the_product_with_what_the_weight_stands_for(
    weight: Family, shape: tuple[int, ...], dtype: torch.dtype, compact: bool
) -> None:
    x = random_input(shape, weight.shape[1], dtype)
    dense = weight.dequantize(dtype)
    product = Compact.of(weight).matmul if compact else weight.matmul
    assert near(product(x), F.linear(x, dense))

    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    factors = random_input(shape, weight.shape[0], dtype, seed=1)
    torch.autograd.backward((product(left) * factors).sum())
    torch.autograd.backward((F.linear(right, dense) * factors).sum())
    assert left.grad is not None
    assert right.grad is not None
    assert near(left.grad, right.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_small_differences(kind: str) -> None:
    weight = example(kind, rows=6, columns=96 if "64" in kind else 128)
    x = random_input((3,), weight.shape[1], torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(weight.matmul, (x,))
    assert torch.autograd.gradcheck(Compact.of(weight).matmul, (x,))


@pytest.mark.parametrize("kind", ["4 bits in activation order", "nf4", "fp8, blocks"])
def test_nothing_is_kept_between_forward_and_backward(kind: str) -> None:
    weight = Compact.of(example(kind))
    x = random_input((3,), 128, torch.float32).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    before = dense_matrices()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = weight.matmul(x)
    assert dense_matrices() == before, "the dequantized weight is alive"
    assert all(tensor.dtype == torch.int64 for tensor in kept), "more than the order of columns is saved"
    torch.autograd.backward(output.sum())
    assert dense_matrices() == before


def dense_matrices() -> int:
    """How many float matrices of the size of the weight are alive."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    return sum(t.is_floating_point() and t.itemsize >= 2 and t.numel() >= 48 * 128 for t in tensors)


@given(
    st.integers(0, 2**31), st.sampled_from(["nf4", "fp4"]), st.sampled_from([torch.float32, torch.bfloat16])
)
@settings(max_examples=20, deadline=None)
def test_bitsandbytes_gives_the_same_product_and_gradient(seed: int, kind: str, dtype: torch.dtype) -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind)
    saved = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    ours = encoding.decode({"weight": packed, **saved})
    assert isinstance(ours, Codebook)
    left = random_input((2, 3), 128, dtype, seed).requires_grad_()
    right = left.detach().clone().requires_grad_()
    factors = random_input((2, 3), 24, dtype, seed + 1)
    got = Compact.of(ours).matmul(left)
    expected = bitsandbytes.matmul_4bit(right, packed.t(), quant_state=state)
    assert near(got, expected)
    torch.autograd.backward(got, factors)
    torch.autograd.backward(expected, factors)
    assert left.grad is not None
    assert right.grad is not None
    assert near(left.grad, right.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_is_looked_at(kind: str) -> None:
    """On the meta device there are none, and to ask for one is an error. A CUDA graph captures the same."""
    weight = Compact.of(example(kind))
    tensors = {name: tensor.to("meta") for name, tensor in weight.tensors.items()}
    x = torch.empty(32, 128, dtype=torch.bfloat16, device="meta", requires_grad=True)
    product = Compact(weight.form, tensors).matmul(x)
    assert product.shape == (32, 48)
    assert product.dtype == torch.bfloat16
    torch.autograd.backward(product.sum())
    assert x.grad is not None
    assert x.grad.is_meta
    with pytest.raises(NotImplementedError):
        Affine(4, 32, torch.zeros(2, 32).byte(), torch.ones(2, 1), order=torch.arange(32).to("meta"))


def test_autocast_changes_nothing() -> None:
    weight = example("nf4")
    plain, cast = (random_input((3,), 128, torch.float32).requires_grad_() for _ in range(2))
    expected = weight.matmul(plain)
    torch.autograd.backward(expected.sum())
    with torch.autocast("cpu", torch.bfloat16):
        got = weight.matmul(cast)
        torch.autograd.backward(got.sum())
    assert torch.equal(got, expected)
    assert plain.grad is not None
    assert cast.grad is not None
    assert torch.equal(cast.grad, plain.grad)


def test_codes_and_scales_have_no_gradient_and_no_second_one_is_promised() -> None:
    made = example("4 bits")
    assert isinstance(made, Affine)
    scale = made.scale.float().requires_grad_()
    x = random_input((3,), 128, torch.float32).requires_grad_()
    weight = Affine(4, 32, made.codes, scale, made.zero)
    (first,) = torch.autograd.grad(weight.matmul(x).pow(2).sum(), x, create_graph=True)
    assert scale.grad is None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())


@pytest.mark.parametrize(
    "x", [torch.ones(3, 127), torch.ones(3, 128, dtype=torch.int64), torch.tensor(1.0)], ids=str
)
def test_an_input_that_does_not_fit_is_refused_in_words(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x must hold floats of shape \[\.\.\., 128\], not .*48 by 128"):
        example("4 bits").matmul(x)


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that says it has tensor cores: what is chosen is looked at, not what it does."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    small_products._runs_on.cache_clear()
    yield
    small_products._runs_on.cache_clear()


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_without_triton_weights_are_unpacked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "corral.quant.triton_matmul", raising=False)
    with caplog.at_level(logging.INFO, "corral"):
        assert small_products.small_product(torch.ones(1, 128), example("4 bits")) is None
    assert "Triton is not installed" in caplog.text


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_where_triton_finds_no_compiler_weights_are_unpacked_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    broken = ModuleType("corral.quant.triton_matmul")
    broken.small_matmul = fails  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "corral.quant.triton_matmul", broken)
    for _ in range(3):
        assert small_products.small_product(torch.ones(1, 128), example("4 bits")) is None
    assert caplog.text.count("Failed to find C compiler") == 1
