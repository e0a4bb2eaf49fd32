"""A histogram for what happens at every token: no locks, and no labels to look up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily


class TokenHistogram:
    """Counts values by buckets. Written to from one thread; any may read.

    Args:
        bounds: of the buckets, upwards; a value on a bound belongs below it.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Adds a value as often as `times` says."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Tells Prometheus."""
        counts = list(self._counts)
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
        family.add_metric(list(labels), buckets=buckets, sum_value=self._sum)
