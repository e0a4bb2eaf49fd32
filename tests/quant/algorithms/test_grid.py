from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.quant.algorithms.grid import Grid, round_to_nearest

shapes = {
    "bits": st.sampled_from([2, 3, 4, 8]),
    "group_size": st.sampled_from([8, 32, 64]),
    "symmetric": st.booleans(),
    "seed": st.integers(0, 2**31),
}


def weight_of(seed: int, rows: int = 5, columns: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[1] = 0.0
    weight[2, :8] = 3.0
    weight[3, 5] = 1000.0
    return weight


@given(**shapes)
def test_every_value_is_rounded_to_a_neighbour_on_its_grid(
    bits: int, group_size: int, symmetric: bool, seed: int
) -> None:
    weight = weight_of(seed)
    affine = round_to_nearest(weight, bits, group_size, symmetric=symmetric)
    step = affine.scale.float().repeat_interleave(group_size, 1)
    error = (affine.dequantize() - weight).abs()
    assert bool((error <= step * (0.5 + 2.0**-10 * 2**bits)).all())  # float16 rounds the step
    assert bool((affine.dequantize()[1] == 0).all())
    assert affine.bits == bits
    assert int(affine.codes.max()) < 2**bits


@given(**shapes)
def test_a_symmetric_grid_has_its_zero_in_the_middle_and_another_reaches_zero(
    bits: int, group_size: int, symmetric: bool, seed: int
) -> None:
    affine = round_to_nearest(weight_of(seed), bits, group_size, symmetric=symmetric)
    if symmetric:
        assert affine.zero == 1 << (bits - 1)
    else:
        zeros = torch.as_tensor(affine.zero)
        assert int(zeros.min()) >= 0
        assert int(zeros.max()) < 2**bits


@given(bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 2**31), negative=st.booleans())
def test_the_largest_weight_of_a_group_is_kept(bits: int, seed: int, negative: bool) -> None:
    weight = weight_of(seed)
    largest = 50.0 * (-1 if negative else 1)
    weight[0, 3] = largest
    for symmetric in (False, True):
        found = round_to_nearest(weight, bits, 32, symmetric=symmetric).dequantize()[0, 3]
        step = 0.0 if symmetric else 0.5 * 53 / (2**bits - 1)  # where the zero point is rounded
        assert abs(float(found) - largest) <= step + 50 * 2.0**-10


def search_errors(seed: int, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What the search minimizes, of each group [5, 2], without it and with it."""
    weight = weight_of(seed)
    plain, searched = (
        round_to_nearest(weight, bits, 32, symmetric=symmetric, search=search) for search in (False, True)
    )
    first, second = (
        (affine.dequantize() - weight).abs().pow(2.4).view(5, 2, 32).sum(2) for affine in (plain, searched)
    )
    return first, second


@given(seed=st.integers(0, 2**31), bits=st.sampled_from([2, 3, 4]), symmetric=st.booleans())
def test_the_search_is_never_worse_by_its_own_measure(seed: int, bits: int, symmetric: bool) -> None:
    plain, searched = search_errors(seed, bits, symmetric)
    assert bool((searched <= plain * (1 + 1e-5) + 1e-12).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_search_finds_better_ranges(bits: int, symmetric: bool) -> None:
    plain, searched = search_errors(0, bits, symmetric)
    assert searched[0].sum() < 0.95 * plain[0].sum()


def test_what_has_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 8 bits, not 9"):
        Grid.find(torch.zeros(2, 32), 9, 32)
    with pytest.raises(ValueError, match="not finite"):
        Grid.find(torch.full((2, 32), torch.nan), 4, 32)
    with pytest.raises(ValueError, match="beyond float16"):
        Grid.find(torch.full((2, 32), 1e9), 4, 32)
