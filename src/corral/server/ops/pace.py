"""How fast requests end: from it follows how long one that finds the queue full should wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW = 64  # ends that are remembered
_LEAST, _MOST = 1.0, 120.0


class Pace:
    """The ends of the last requests."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ends: deque[float] = deque(maxlen=_WINDOW)

    def ended(self) -> None:
        """A request has ended."""
        self._ends.append(self._now())

    def seconds_to_wait(self, waiting: int) -> float:
        """When a tenth of the `waiting` requests will be gone, at the pace of the last ones: 1 s to 120 s.

        A tenth, so that those who come back find room, and do not come all at the end.
        """
        if len(self._ends) < 2:
            return _LEAST
        rate = len(self._ends) / max(self._now() - self._ends[0], 1e-3)
        return min(max(waiting / 10 / rate, _LEAST), _MOST)
