from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sampling.choice import UNKNOWN_MASS, choose, choose_from_row
from corral.engine.sampling.history import History
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.random import uniform
from corral.engine.sampling.sampler import Row, sample_rows
from corral.engine.sampling.window import Window
from tests.engine.reference_sampling import sample

ROWS = 8


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"min_p": 0.3},
        {"min_p": 1e-6},
        {"min_p": 1.0},
        {"top_k": 3},
        {"top_k": 512},
        {"top_k": 1000},
        {"top_k": 1000, "top_p": 0.9},
        {"top_k": 1000, "min_p": 1e-3},
        {"top_k": 10**6},
        {"top_p": 0.9, "min_p": 0.1},
        {"typical_p": 0.6},
        {"typical_p": 0.6, "min_p": 1e-3},
        {"typical_p": 0.6, "top_p": 0.7},
        {"typical_p": 0.6, "top_k": 1000},
    ],
    ids=str,
)
def test_rows_of_any_shape_are_drawn_as_defined(values: dict[str, Any], spread: float) -> None:
    params = SamplingParams(**values)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, 1600, generator=generator) * spread
    logits[::2] = (logits[::2] * 4).round() / 4  # equal scores, many of them
    rows = [Row(params, History(params, []), (), 5, position) for position in range(ROWS)]
    expected = [sample(logits[i], params, [], [], 5, i) for i in range(ROWS)]
    assert [token.token_id for token in sample_rows(logits, rows)] == expected
    assert [choose_from_row(logits[i].numpy(), params, uniform(5, i)) for i in range(ROWS)] == expected


def test_a_draw_takes_the_first_token_up_to_which_more_than_it_lies() -> None:
    window = Window(np.arange(10, 14), np.zeros(4, dtype=np.float32), complete=True)
    draws = [0.0, 0.2499, 0.25, 0.5, 0.75, 1 - 2**-53]
    tokens = [choose(window, SamplingParams(), draw, UNKNOWN_MASS) for draw in draws]
    assert tokens == [10, 10, 11, 12, 13, 13]


@given(st.floats(0.0, 1.0, exclude_max=True), st.floats(0.05, 1.0), st.floats(0.0, 0.3))
def test_a_window_decides_nothing_that_the_error_of_the_mass_could_change(
    draw: float, top_p: float, error: float
) -> None:
    scores = np.log(np.array([0.3, 0.2, 0.1, 0.1], dtype=np.float32))  # and 0.3 beyond the window
    window = Window(np.arange(4), scores, complete=False)
    params = SamplingParams(top_p=top_p)
    mass = 1 / 0.3
    got = choose(window, params, draw, (mass * (1 - error), mass * (1 + error)))
    if got is not None:
        shares = np.linspace(1 - error, 1 + error, 21)
        assert {choose(window, params, draw, (mass * f, mass * f)) for f in shares} == {got}
    if draw * (1 + error) > 0.7001 and top_p == 1.0:
        assert got is None


def test_a_window_smaller_than_top_k_decides_nothing() -> None:
    window = Window(np.arange(4), np.zeros(4, dtype=np.float32), complete=False)
    assert choose(window, SamplingParams(top_k=5), 0.1, (8.0, 8.0)) is None
    assert choose(window, SamplingParams(top_k=4), 0.1, (8.0, 8.0)) == 0
