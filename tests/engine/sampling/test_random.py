from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from corral.engine.sampling.random import choice_key, uniform


@given(st.integers(0, 2**64 - 1), st.integers(0, 127), st.integers(0, 2**40))
def test_the_numbers_are_those_of_numpys_philox(seed: int, choice: int, position: int) -> None:
    key = choice_key(seed, choice)
    raw = np.random.Philox(key=key, counter=position).random_raw()
    assert uniform(key, position) == int(raw >> 11) * 2.0**-53


def test_the_numbers_are_spread_evenly_over_positions_seeds_and_choices() -> None:
    numbers = [uniform(choice_key(s, c), p) for s in range(20) for c in range(20) for p in range(20)]
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert all(680 < count < 920 for count in counts)
    assert len(set(numbers)) == len(numbers)
