"""What a step costs by the number of rows in it, as measured while the engine runs."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from statistics import median

SAMPLES = 5  # the latest ones are kept; their median ignores a hiccup, or a first run that had to warm up
ENOUGH = 3  # samples before a measurement counts, and tries before no more are made to get one
FORGET = 512  # steps after which a measurement is too old to count
_SHORTEST = 1e-9  # seconds; a clock may be too coarse to see a step at all


class StepCosts:
    """Seconds of a step that decodes one certain number of sequences, by its rows.

    Old measurements are forgotten, so that what was found too costly once is tried again.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._newest: dict[int, int] = {}  # the step of the newest sample
        self._tries: Counter[int] = Counter()
        self._known: dict[int, float] = {}  # medians by rows, in order
        self._steps = 0

    def record(self, rows: int, seconds: float) -> None:
        """Takes in one step."""
        self._steps += 1
        self._newest[rows] = self._steps
        samples = self._samples.setdefault(rows, deque(maxlen=SAMPLES))
        samples.append(max(seconds, _SHORTEST))
        if len(samples) >= ENOUGH:
            self._known[rows] = median(samples)
            self._known = dict(sorted(self._known.items()))
        self._forget()

    def known(self, rows: int) -> bool:
        """Whether steps of just so many rows have been measured."""
        return rows in self._known

    def seconds(self, rows: int) -> float:
        """The expected seconds of a step of so many rows; fewer must be known.

        What has not been measured is taken to cost no more than the most rows below it that have been, so
        that it is tried. If tries give no measurement, it is interpolated.
        """
        counts = list(self._known)
        above = bisect_right(counts, rows)
        low = self._known[counts[above - 1]]
        if counts[above - 1] == rows or above == len(counts) or self._tries[rows] < ENOUGH:
            return low
        share = (rows - counts[above - 1]) / (counts[above] - counts[above - 1])
        return low + share * (self._known[counts[above]] - low)

    def note_try(self, rows: int) -> None:
        """Takes in that guesses were made which may lead to a step of so many rows."""
        self._tries[rows] += 1

    def _forget(self) -> None:
        for rows in [rows for rows, step in self._newest.items() if self._steps - step >= FORGET]:
            del self._samples[rows], self._newest[rows]
            self._known.pop(rows, None)
        if self._steps % FORGET == 0:
            self._tries.clear()
