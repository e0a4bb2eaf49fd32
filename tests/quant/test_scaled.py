"""8-bit floats times 8-bit floats, as their makers meant it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from corral.quant import Float8, linear
from corral.quant.compact import Compact
from corral.quant.float8 import Activations
from corral.quant.linear import QuantizedLinear
from corral.quant.scaled import is_scaled_by_token, rounded, scaled_matmul, scales_activations


def by_token(block: tuple[int, int] | None, bound: float | None = None) -> Float8:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    return replace(Float8.quantize(weight, block), activations="token", activation_bound=bound)


@pytest.mark.parametrize("block", [None, (1, 64)])
@pytest.mark.parametrize("bound", [None, 1.5])
def test_it_is_the_product_of_what_is_rounded(block: tuple[int, int] | None, bound: float | None) -> None:
    weight = by_token(block, bound)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[0, 3] = 0
    largest = x.float().abs().amax(-1, keepdim=True).clamp(max=bound or torch.inf)
    scale = largest / 448
    codes = (x.float() / scale.clamp(min=1e-12)).clamp(-448, 448).to(torch.float8_e4m3fn)
    expected = (codes.double() * scale) @ weight.dequantize().double().T
    got = scaled_matmul(Compact.of(weight), x)
    assert got.shape == (2, 5, 32)
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.double(), expected, rtol=2**-8, atol=1e-6)
    assert not got[0, 3].any()


def test_a_token_is_rounded_by_itself() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    codes, scale = rounded(x, None)
    alone, own = rounded(x[2:3], None)
    assert torch.equal(codes[2:3].view(torch.uint8), alone.view(torch.uint8))
    assert torch.equal(scale[2:3], own)
    assert torch.allclose(codes.float() * scale, x, rtol=2**-4, atol=float(x.abs().max()) * 2**-15)


@pytest.mark.parametrize(
    ("block", "activations", "expected"),
    [
        (None, "token", True),
        ((1, 64), "token", True),
        ((16, 64), "token", False),
        ((32, 32), "token", False),
        (None, "none", False),
        (None, "tensor", False),  # a token's result would depend on its neighbours
    ],
)
def test_only_what_the_checkpoint_asks_for_and_the_device_multiplies(
    block: tuple[int, int] | None, activations: Activations, expected: bool
) -> None:
    weight = Compact.of(replace(by_token(block), activations=activations))
    assert is_scaled_by_token(weight) is expected
    assert not scales_activations(weight, torch.ones(1, 64, dtype=torch.bfloat16)), "a CPU has no such units"


def test_a_layer_rounds_activations_only_if_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = by_token((1, 64)), torch.ones(32)
    layer = QuantizedLinear(weight, bias)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = layer(x)
    # As on a device that multiplies 8-bit floats; torch does so on a CPU, too, but slowly.
    monkeypatch.setattr(linear, "scales_activations", lambda compact, _: is_scaled_by_token(compact))
    assert torch.equal(layer(x), exact)
    layer.exact = False
    assert torch.equal(layer(x), scaled_matmul(layer.compact, x) + bias.bfloat16())
    assert not torch.equal(layer(x), exact)
    assert (layer(x) - exact).float().norm() < 0.1 * exact.float().norm()


def test_odd_sizes_are_left_to_the_exact_product() -> None:
    weight = replace(Float8.quantize(torch.randn(30, 64)), activations="token")
    assert not is_scaled_by_token(Compact.of(weight))
