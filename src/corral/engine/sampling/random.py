"""Randomness that depends on nothing but a seed and a position."""

from __future__ import annotations

import numpy as np


def choice_key(seed: int, choice: int) -> int:
    """The 128-bit key of one of the `n` outputs of a request; output 0 has the seed itself."""
    return seed | choice << 64


def uniform(key: int, position: int) -> float:
    """A number in [0, 1) that is a function of key and position (Philox; Salmon et al., SC 2011)."""
    raw = np.random.Philox(key=key, counter=position).random_raw()
    return int(raw >> 11) * 2.0**-53
