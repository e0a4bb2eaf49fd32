"""What is read off all rows of logits together.

On the CPU it is NumPy that is fast at this, in blocks of rows that stay in the cache; elsewhere it is torch,
on all rows at once.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling import scan_numpy, scan_torch
from corral.engine.sampling.window import Window

BestTokens = tuple[NDArray[np.float32], NDArray[np.int64]]


class Scan(Protocol):
    """Each result belongs to one row alone: it does not depend on the other rows."""

    def best_tokens(self, logits: Tensor) -> BestTokens:
        """The greatest logit of each row [R, vocab], and the lowest id that has it; NaN is the greatest."""

    def windows(self, logits: Tensor, ranks: NDArray[np.int64]) -> list[Window]:
        """The tokens of each row [R, vocab] from a score on that its `ranks` best tokens reach.

        The window of a row with NaN may be empty.
        """

    def masses(
        self, logits: Tensor, best: NDArray[np.float32], inverse_temperatures: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The sum of exp((logit - best) / temperature) over each row [R, vocab], within `MASS_ERROR`."""


MASS_ERROR = 2.0**-17
"""Relative error of a mass: exponents of up to 12 or so that matter, rounded three times in float32, and the
rounding of the sum, come to a quarter of it."""


def scan_on(device: torch.device) -> Scan:
    """How logits on a device are read."""
    return scan_numpy if device.type == "cpu" else scan_torch
