"""Means over windows and their standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from corral.evals.statistics import Estimate


def test_windows_of_equal_length_give_the_standard_error_of_their_means() -> None:
    sums = np.array([30.0, 36.0, 27.0, 33.0, 24.0])
    got = Estimate.over_windows(sums.tolist(), [10] * 5)
    means = sums / 10
    assert got.mean == pytest.approx(means.mean())
    assert got.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(5))


def test_windows_of_unequal_length_count_by_their_tokens() -> None:
    got = Estimate.over_windows([2.0, 30.0], [1, 9])
    assert got.mean == pytest.approx(3.2)
    # Residuals 2 - 3.2 and 30 - 28.8; sqrt(2 / 1 * (1.44 + 1.44)) / 10.
    assert got.standard_error == pytest.approx(0.24)


def test_the_error_covers_the_mean_as_often_as_it_should() -> None:
    """Windows whose tokens share an offset: 68% of samples are within one standard error, 95% within two."""
    generator = np.random.default_rng(0)
    off = []
    for _ in range(2000):
        counts = generator.integers(20, 200, 40)
        sums = [generator.normal(3, 1) * count + generator.normal(0, 2) * count**0.5 for count in counts]
        got = Estimate.over_windows(sums, counts.tolist())
        assert got.standard_error is not None
        off.append(abs(got.mean - 3) / got.standard_error)
    assert 0.64 < np.mean(np.array(off) < 1) < 0.71
    assert 0.92 < np.mean(np.array(off) < 2) < 0.97


def test_one_window_tells_nothing_of_the_error() -> None:
    got = Estimate.over_windows([30.0], [10])
    assert got == Estimate(3.0, None)
    assert got.exp() == Estimate(math.exp(3), None)


def test_the_error_of_a_power_is_that_of_the_exponent_times_it() -> None:
    got = Estimate(3.0, 1e-4).exp()
    assert got.standard_error == pytest.approx((math.exp(3.0001) - math.exp(2.9999)) / 2, rel=1e-6)


def test_a_perplexity_beyond_all_floats_is_infinite_and_null_in_json() -> None:
    got = Estimate(1000.0, 1.0).exp()
    assert got == Estimate(math.inf, None)
    assert got.to_dict() == {"mean": None, "standard_error": None}
