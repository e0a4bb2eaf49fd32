"""Which items are trained on and which are kept apart, and how often each comes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from corral.tune.errors import TuneError

Indices = NDArray[np.int64]


def held_out(prompts: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which items [n] are kept apart for evaluation: at least a share of them, and at least one.

    Items with the same hash [n] are on one side, whatever their order, so that nothing that is evaluated on
    was trained on, and a data set that grows keeps most of its choice.

    Raises:
        TuneError: nothing is left to train on.
    """
    hashes, counts = np.unique(prompts, return_counts=True)  # sorted: hashes are as good as drawn
    wanted = max(1, round(share * len(prompts)))
    groups = int(np.searchsorted(np.cumsum(counts), wanted)) + 1
    if groups >= len(hashes):
        raise TuneError(
            f"eval_fraction is {share:g}, which leaves nothing to train on: the data has {len(hashes):,} "
            "different prompts or texts; lower it, or give rows for eval"
        )
    return np.isin(prompts, hashes[:groups])


def repeated(count: int, weight: float, seed: list[int]) -> Indices:
    """Places [0, count) as often as a weight says: 2.5 gives each twice, and half of them once more.

    Which come once more follows from the seed. At least one comes.
    """
    whole = int(weight)
    more = round((weight - whole) * count)
    if whole == 0:
        more = max(1, more)
    drawn = np.sort(np.random.default_rng(seed).permutation(count)[:more])
    return np.concatenate([np.tile(np.arange(count), whole), drawn]).astype(np.int64)
