"""The best tokens of many rows of logits, without sorting a row.

A row is folded into columns, of which the best logits are taken:

    row      [ 0 1 2 .. C-1 | C .. 2C-1 | 2C .. 3C-1 | rest ]
    column j   holds j, C+j, 2C+j, ..

The k-th largest of these C column maxima is at most the k-th largest logit, for k columns hold a logit at
least as large; and it is hardly less. All logits from there on are the row's window: a little more than k
of them, and equal ones are never cut apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS = 1024
MAX_RANK = 512
LOWEST = np.finfo(np.float32).min  # the bound of a window that holds all finite scores


@dataclass(frozen=True)
class Window:
    """The best tokens of a row: all from some score on, best first, equal ones by id.

    `complete` says that they are all tokens of the row whose score is finite.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    complete: bool


def sorted_window(ids: NDArray[np.int64], scores: NDArray[np.float32], complete: bool) -> Window:
    """A window of tokens given in the order of their ids."""
    order = np.argsort(-scores, kind="stable")
    return Window(ids[order], scores[order], complete)


def cut_rows(
    places: NDArray[np.int64], scores: NDArray[np.float32], bounds: NDArray[np.float32], vocab_size: int
) -> list[Window]:
    """One window for each bound: `places` are those of the tokens in all rows laid end to end, in order."""
    starts = (np.arange(len(bounds) + 1) * vocab_size).tolist()
    cuts = np.searchsorted(places, starts).tolist()
    windows = []
    for index, bound in enumerate(bounds.tolist()):
        own = slice(cuts[index], cuts[index + 1])
        ids = places[own] - starts[index]
        windows.append(sorted_window(ids, scores[own], bound == LOWEST or len(ids) == vocab_size))
    return windows
