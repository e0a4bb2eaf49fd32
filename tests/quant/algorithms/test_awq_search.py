from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from corral.quant.algorithms.awq import AwqOptions, clip_search, input_sizes, search_scales
from corral.quant.algorithms.grid import round_to_nearest


def salient_inputs(columns: int, tokens: int = 200, seed: int = 0) -> Tensor:
    """Inputs of which a few channels are far larger than the others [tokens, columns]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator)
    x[:, torch.randperm(columns, generator=generator)[: columns // 32]] *= 30
    return x


def weights_of(*rows: int, columns: int = 128, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, columns, generator=generator) for count in rows]


def rounded(weight: Tensor, bits: int = 3) -> Tensor:
    return round_to_nearest(weight, bits, 32, symmetric=False).dequantize()


def error_of(weights: Sequence[Tensor], inputs: Tensor, others: Sequence[Tensor]) -> float:
    parts = zip(weights, others, strict=True)
    return sum(float((inputs @ (other - weight).T).pow(2).mean()) for weight, other in parts)


@pytest.mark.parametrize("duo_scaling", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_large_channels_are_rounded_more_finely(duo_scaling: bool, bits: int) -> None:
    weights, inputs = weights_of(40, 24), salient_inputs(128)
    quantize, error = partial(rounded, bits=bits), partial(error_of, weights, inputs)
    options = AwqOptions(duo_scaling=duo_scaling)
    found = search_scales(weights, 32, input_sizes(inputs), quantize, error, options)
    scales = found.scales
    large = input_sizes(inputs) > 10
    assert scales[large].min() > 2 * scales[~large].max()
    assert found.plain_error == error([quantize(weight) for weight in weights])
    assert found.error == error([quantize(weight * scales) / scales for weight in weights])
    assert found.error < 0.5 * found.plain_error


def test_where_nothing_helps_the_weights_stay_as_they_are() -> None:
    weights, inputs = weights_of(40), salient_inputs(128)
    nothing_lost = search_scales(
        weights, 32, input_sizes(inputs), lambda weight: weight, lambda _: 1.0, AwqOptions()
    )
    assert bool((nothing_lost.scales == 1).all())


def test_channels_that_are_always_zero_are_no_trouble() -> None:
    weights, inputs = weights_of(40), salient_inputs(128)
    inputs[:, 3] = 0.0
    weights[0][:, 7] = 0.0
    error = partial(error_of, weights, inputs)
    scales = search_scales(weights, 32, input_sizes(inputs), rounded, error).scales
    assert bool(torch.isfinite(scales).all())
    assert bool((scales > 0).all())
    assert error([rounded(weights[0] * scales) / scales]) < error([rounded(weights[0])])


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_makes_no_group_worse(symmetric: bool) -> None:
    (weight,), inputs = weights_of(30), torch.randn(64, 128, generator=torch.Generator().manual_seed(2))

    def quantize(some: Tensor) -> Tensor:
        return round_to_nearest(some, 3, 32, symmetric=symmetric).dequantize()

    def errors(kept: Tensor) -> Tensor:
        change = quantize(kept) - weight
        return torch.einsum("tgc,rgc->trg", inputs.view(64, 4, 32), change.view(30, 4, 32)).pow(2).mean(0)

    clipped = clip_search(weight, inputs, 32, quantize)
    assert bool((errors(clipped) <= errors(weight) * (1 + 1e-4)).all())
    assert errors(clipped).sum() < 0.95 * errors(weight).sum()
    within = weight.abs() <= clipped.view(30, 4, 32).abs().amax(2).repeat_interleave(32, 1)
    assert torch.equal(clipped[within], weight[within])
