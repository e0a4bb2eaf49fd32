"""How one token is chosen among the best of a row: the filters, then the draw.

The definition is over the whole row, best token first, equal scores by id. With weights exp((score - best) /
temperature), in double precision and added up in that order:

    top_k    keeps the first k tokens
    top_p    keeps the tokens before which less than this share of what was kept so far lies
    min_p    keeps the tokens with at least this share of the best one's weight
    typical  keeps those whose information is nearest to the entropy of what was kept so far
    draw     takes the first token up to which more than `draw` of the kept weight lies

A window of the best tokens decides too, where the mass of the whole row is known well enough that no rounding
can change the outcome. So nearly no row is sorted, and yet a token depends on its row alone, and not on how
the sum of the row was computed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.window import Window, sorted_window

UNKNOWN_MASS = (math.inf, math.inf)
MAX_INVERSE_TEMPERATURE = 1e30  # beyond it all but the best tokens have weight 0, and float32 overflows
_LEVELS = 64  # halvings of the best token's weight
_ROUNDING = 1e-10  # of sums in double precision


def choose(window: Window, params: SamplingParams, draw: float, mass: tuple[float, float]) -> int | None:
    """The token id, or None where the window does not decide.

    `draw` is in [0, 1). `mass` bounds the sum of the row's weights; that of a complete window is not needed.
    """
    exponents = (window.scores.astype(np.float64) - float(window.scores[0])) / params.temperature
    weights = np.exp(exponents)
    sums = weights.cumsum()
    low = _kept(window.complete, params, weights, sums, mass[0])
    high = low if mass[1] == mass[0] else _kept(window.complete, params, weights, sums, mass[1])
    if low is None or high is None:
        return None
    if params.typical_p < 1.0:
        if low != high or low[1] != sums[low[0] - 1]:
            return None
        return int(window.ids[_typical_place(exponents[: low[0]], params.typical_p, draw)])
    place = int(sums.searchsorted(draw * low[1], side="right"))
    if place >= len(weights) or place != int(sums.searchsorted(draw * high[1], side="right")):
        return None
    return int(window.ids[place])


def choose_from_row(scores: NDArray[np.float32], params: SamplingParams, draw: float) -> int:
    """The token id for the scores [vocab] of a row, of which one at least is finite."""
    window, mass = _wide_window(scores, params, draw)
    if window is not None:
        token_id = choose(window, params, draw, (mass * (1 - _ROUNDING), mass * (1 + _ROUNDING)))
        if token_id is not None:
            return token_id
    finite = np.flatnonzero(scores > -np.inf)
    token_id = choose(sorted_window(finite, scores[finite], True), params, draw, UNKNOWN_MASS)
    assert token_id is not None, "a complete window decides"
    return token_id


def _kept(
    complete: bool,
    params: SamplingParams,
    weights: NDArray[np.float64],
    sums: NDArray[np.float64],
    mass: float,
) -> tuple[int, float] | None:
    """How many of the best tokens top_k, top_p and min_p keep, and their weight, where that is decided.

    As long as tokens beyond the window are kept too, it is all of the window and the mass of the row.
    """
    count, closed = len(weights), complete
    mass = float(sums[-1]) if complete else mass
    if params.top_k > count and not complete:
        return None
    if 0 < params.top_k <= count:
        count, closed, mass = params.top_k, True, float(sums[params.top_k - 1])
    if params.top_p < 1.0:
        count = int(sums.searchsorted(params.top_p * mass)) + 1
        if count > len(weights):
            return None
        closed, mass = True, float(sums[count - 1])
    if params.min_p > 0.0:
        likely = int(np.count_nonzero(weights[:count] >= params.min_p))
        if likely == count and not closed:
            return None
        count, mass = likely, float(sums[likely - 1])
    return count, mass


def _typical_place(exponents: NDArray[np.float64], typical_p: float, draw: float) -> int:
    """The place drawn among typical tokens (Meister et al., 2023, arXiv:2202.00666)."""
    weights = np.exp(exponents)
    probabilities = weights / weights.sum()
    information = math.log(weights.sum()) - exponents
    held = probabilities > 0.0  # an impossible token's information may be infinite
    entropy = (probabilities[held] * information[held]).sum()
    distance = np.abs(information - entropy)
    order = np.argsort(distance, kind="stable")
    before = np.count_nonzero(probabilities[order].cumsum() < typical_p)
    furthest = distance[order[min(int(before), len(order) - 1)]]
    sums = np.where(distance <= furthest, weights, 0.0).cumsum()
    return int(sums.searchsorted(draw * sums[-1], side="right"))


def _wide_window(
    scores: NDArray[np.float32], params: SamplingParams, draw: float
) -> tuple[Window | None, float]:
    """A window that probably decides, from a histogram of weights by halvings; and the mass of the row."""
    inverse = min(1.0 / params.temperature, MAX_INVERSE_TEMPERATURE)
    best = scores.max()
    depths = np.minimum((best - scores) * np.float32(inverse / math.log(2)), _LEVELS - 1).astype(np.int64)
    weights = np.exp((scores.astype(np.float64) - float(best)) / params.temperature)
    mass = float(weights.sum())
    if params.top_k > 0:
        level = int(np.bincount(depths).cumsum().searchsorted(params.top_k))
    elif params.top_p == 1.0 and params.min_p > 0.0:
        level = int(-math.log2(params.min_p)) + 2
    else:
        wanted = (params.top_p if params.top_p < 1.0 else draw) * mass
        level = int(np.bincount(depths, weights).cumsum().searchsorted(wanted * (1 + 2 * _ROUNDING)))
    if level >= _LEVELS - 1:
        return None, mass
    ids = np.flatnonzero(depths <= level)
    return sorted_window(ids, scores[ids], False), mass
