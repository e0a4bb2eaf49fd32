"""Codebook weights: NF4."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.quant import NF4, Codebook

LEVELS = torch.tensor(NF4)


def test_the_levels_rise_from_minus_one_over_zero_to_one() -> None:
    assert NF4[0] == -1.0
    assert NF4[7] == 0.0
    assert NF4[15] == 1.0
    assert list(NF4) == sorted(NF4)


@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([8, 64, 192]))
def test_every_value_takes_its_nearest_level(seed: int, rows: int, group_size: int) -> None:
    weight = torch.randn(rows, 192, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    quantized = Codebook.quantize(weight, group_size)
    shares = weight.view(rows, -1, group_size) / quantized.scale.clamp_min(1e-30)[..., None]
    nearest = (shares[..., None] - LEVELS).abs().amin(-1)
    taken = (shares - LEVELS[quantized.codes.long()].view_as(shares)).abs()
    assert torch.allclose(taken, nearest, atol=1e-6)
    assert torch.equal(quantized.scale, weight.view(rows, -1, group_size).abs().amax(2))


def test_dequantizing_is_the_level_times_the_scale() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(2, 2)
    scale = torch.tensor([[1.0, 2.0], [0.5, 0.0]])
    weight = Codebook(LEVELS, 16, codes, scale)
    assert torch.equal(weight.dequantize(), (LEVELS * scale[..., None]).view(2, 32))
    assert torch.equal(weight.rows(torch.tensor([1, 0])).dequantize(), weight.dequantize().flip(0))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    codes, scale = torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 1)
    cases: list[Callable[[], object]] = [
        lambda: Codebook(LEVELS[:8], 64, codes, scale),
        lambda: Codebook(LEVELS, 32, codes, scale),
        lambda: Codebook.quantize(torch.full((2, 64), float("nan"))),
        lambda: Codebook.quantize(torch.ones(2, 63)),
    ]
    for wrong in cases:
        with pytest.raises(ValueError, match=r"levels|shape|finite|groups"):
            wrong()
