"""Means and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean, and its standard error; None where there is but one window, which tells nothing of it."""

    mean: float
    standard_error: float | None

    @classmethod
    def over_windows(cls, sums: Sequence[float], counts: Sequence[int]) -> Estimate:
        """The mean of a number over all tokens, from its sum over each window and how many tokens those had.

        The windows are taken as a random sample of independent clusters of the texts' tokens: with n windows
        of sums s and counts c the mean is m = sum(s) / sum(c), and its standard error
        sqrt(n / (n - 1) * sum((s - m * c)**2)) / sum(c), that of a ratio estimator (Cochran, Sampling
        Techniques, 1977, chapter 6). Windows of equal length make it the standard deviation of their means
        over sqrt(n). Tokens of one window are not independent; to take each for itself would make too
        little of the error.
        """
        s, c = np.array(sums, np.float64), np.array(counts, np.float64)
        mean = float(s.sum() / c.sum())
        if len(s) == 1:
            return cls(mean, None)
        spread = float(np.square(s - mean * c).sum()) * len(s) / (len(s) - 1)
        return cls(mean, math.sqrt(spread) / float(c.sum()))

    def exp(self) -> Estimate:
        """e to the power of it; the error to first order: d(e^x) = e^x dx."""
        try:
            value = math.exp(self.mean)
        except OverflowError:  # a model that is badly broken
            return Estimate(math.inf, None)
        return Estimate(value, None if self.standard_error is None else value * self.standard_error)

    def to_dict(self) -> dict[str, float | None]:
        """As plain data; JSON has no infinity, which is None too."""
        return {
            "mean": self.mean if math.isfinite(self.mean) else None,
            "standard_error": self.standard_error,
        }
