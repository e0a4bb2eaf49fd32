from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.algorithms.gptq import GptqOptions, Hessian, gptq
from corral.quant.algorithms.grid import Grid, round_to_nearest


def inputs_of(columns: int, tokens: int = 600, seed: int = 0) -> Tensor:
    """Correlated inputs of unlike sizes, as layers have them: float64 [tokens, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    sizes = torch.rand(columns, generator=generator, dtype=torch.float64) ** 4
    noise = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    inputs: Tensor = (noise @ mixing / columns**0.5 + 0.3 * noise) * sizes
    return inputs


def weight_of(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def output_error(weight: Tensor, quantized: Affine, inputs: Tensor) -> float:
    error = (quantized.dequantize().double() - weight) @ inputs.T
    return float(error.pow(2).mean())


def one_by_one(weight: Tensor, hessian: Tensor, grid: Grid, group_size: int, order: Tensor) -> Tensor:
    """Codes by the definition: after each column, the best change of the rest is solved for anew."""
    rest, codes = weight.clone(), torch.zeros_like(weight)
    left = order.tolist()
    while left:
        column = left.pop(0)
        group = torch.tensor([column // group_size])
        codes[:, column : column + 1] = grid.codes(rest[:, column : column + 1], group)
        error = grid.values(codes[:, column : column + 1], group) - rest[:, column : column + 1]
        if left:  # minimizes the error of the output over what is left: H_ll d = -H_lc e
            change = torch.linalg.solve(hessian[left][:, left], hessian[left, column])
            rest[:, left] -= error @ change[None]
    return codes


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize("block_size", [1, 5, 128])
def test_it_is_the_best_change_at_every_column(activation_order: bool, block_size: int) -> None:
    weight, inputs = weight_of(6, 32), inputs_of(32)
    hessian = 2 * inputs.T @ inputs / len(inputs)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True) if activation_order else torch.arange(32)
    expected = one_by_one(weight, damped, Grid.find(weight, 4, 8), 8, order)
    options = GptqOptions(block_size=block_size, activation_order=activation_order)
    assert torch.equal(gptq(weight, hessian, 4, 8, options=options).codes, expected.to(torch.uint8))


@pytest.mark.parametrize("symmetric", [False, True])
def test_without_correlation_it_rounds_to_nearest(symmetric: bool) -> None:
    weight = weight_of(7, 64)
    plain = round_to_nearest(weight, 3, 16, symmetric=symmetric)
    found = gptq(weight, 2 * torch.eye(64, dtype=torch.float64), 3, 16, symmetric=symmetric)
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.scale, plain.scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_output_is_nearer_than_by_rounding(bits: int, symmetric: bool) -> None:
    weight, inputs = weight_of(48, 128), inputs_of(128)
    hessian = Hessian(128)
    for part in torch.split(inputs.float(), 77):
        hessian.add(part)
    plain = output_error(weight, round_to_nearest(weight, bits, 32, symmetric=symmetric), inputs)
    found = output_error(weight, gptq(weight, hessian.matrix, bits, 32, symmetric=symmetric), inputs)
    assert found < 0.6 * plain


def test_the_hessian_does_not_depend_on_how_its_inputs_come() -> None:
    inputs = inputs_of(40).float()
    whole, parts = Hessian(40), Hessian(40)
    whole.add(inputs)
    for part in (inputs[:1], inputs[1:1], inputs[1:500], inputs[500:]):
        parts.add(part)
    torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        whole.matrix.double(), 2 * inputs.double().T @ inputs.double() / 600, rtol=1e-4, atol=1e-6
    )


def test_inputs_that_are_always_zero_or_alike_are_no_trouble() -> None:
    weight, inputs = weight_of(8, 64), inputs_of(64)
    inputs[:, 10] = 0.0
    inputs[:, 20] = inputs[:, 21]
    few = inputs[:9]  # fewer tokens than columns: the Hessian is singular
    for seen in (inputs, few):
        hessian = Hessian(64)
        hessian.add(seen)
        found = gptq(weight, hessian.matrix, 4, 16)
        assert bool(torch.isfinite(found.dequantize()).all())
        assert output_error(weight, found, seen) < output_error(weight, round_to_nearest(weight, 4, 16), seen)


def test_a_hessian_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"finite numbers \[64, 64\]"):
        gptq(weight_of(2, 64), torch.zeros(32, 32), 4, 16)
    with pytest.raises(ValueError, match="finite numbers"):
        gptq(weight_of(2, 64), torch.full((64, 64), torch.nan), 4, 16)
    with pytest.raises(ValueError, match="not positive"):
        gptq(weight_of(2, 64), -torch.eye(64, dtype=torch.float64), 4, 16)
