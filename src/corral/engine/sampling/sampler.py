"""The next tokens of many sequences.

For each row, in this order:

    raw logits -> log-probabilities for the output, where asked for
    1. grammar mask and banned ids: minus infinity
    2. logit bias
    3. repetition penalty, over the tokens of prompt and output
    4. frequency and presence penalty, over the tokens of the output
    5. temperature 0: the best token
       otherwise: temperature, top_k, top_p, min_p, typical_p, and a draw

1 to 4 are in the order of vLLM, the filters of 5 in that of transformers. A token is a function of its row's
logits, parameters, history, drafts, key and position; never of the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling.choice import MAX_INVERSE_TEMPERATURE, UNKNOWN_MASS, choose, choose_from_row
from corral.engine.sampling.logprobs import score_rows
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.processors import edit_logits
from corral.engine.sampling.random import uniform
from corral.engine.sampling.rows import Row, Sampled
from corral.engine.sampling.scan import MASS_ERROR, BestTokens, Scan, scan_on
from corral.engine.sampling.window import MAX_RANK

__all__ = ["Row", "Sampled", "sample_rows"]

_RANK = 256  # tokens of a window, unless top_k asks for others
_NOT_FINITE = "the logits are not finite: the model computed NaN or infinity"
_NOTHING_LEFT = "no token may come here: the grammar, the bias and the banned ids leave none"

Outcome = int | str  # a token id, or what went wrong


def sample_rows(
    logits: Tensor, rows: Sequence[Row], best: BestTokens | None = None, scan: Scan | None = None
) -> list[Sampled]:
    """One token for each row of logits [R, vocab], in the model's dtype, on any device.

    `best` is what `Scan.best_tokens` gives for these logits, where that is known; `scan` reads them.

    A row whose logits are not finite, or of which all tokens are ruled out, gives an error and no token.
    """
    assert logits.shape[0] == len(rows), "one row of logits for each row"
    scan = scan or scan_on(logits.device)
    outcomes: dict[int, Outcome] = {}
    plain = [index for index, row in enumerate(rows) if not row.is_edited]
    edited = [index for index, row in enumerate(rows) if row.is_edited]
    with np.errstate(over="ignore", under="ignore"):
        if plain:
            known = best if len(plain) == len(rows) else None
            chosen = _choose(_take(logits, plain), [rows[i] for i in plain], scan, known)
            outcomes.update(zip(plain, chosen, strict=True))
        if edited:
            chosen = _choose_edited(_take(logits, edited), [rows[i] for i in edited], scan)
            outcomes.update(zip(edited, chosen, strict=True))
        return _with_logprobs(logits, rows, [outcomes[i] for i in range(len(rows))])


def _choose_edited(logits: Tensor, rows: list[Row], scan: Scan) -> list[Outcome]:
    raw_best, _ = scan.best_tokens(logits)  # a mask must not hide a broken row
    outcomes = _choose(edit_logits(logits, rows), rows, scan)
    return [
        outcome if value < math.inf else _NOT_FINITE
        for value, outcome in zip(raw_best, outcomes, strict=True)
    ]


def _choose(scores: Tensor, rows: list[Row], scan: Scan, known: BestTokens | None = None) -> list[Outcome]:
    best, ids = known or scan.best_tokens(scores)
    outcomes: list[Outcome] = [
        token_id if -math.inf < value < math.inf else _NOTHING_LEFT if value == -math.inf else _NOT_FINITE
        for value, token_id in zip(best.tolist(), ids.tolist(), strict=True)
    ]
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy and not isinstance(outcomes[i], str)]
    if drawn:
        tokens = _draw(_take(scores, drawn), best[drawn], [rows[i] for i in drawn], scan)
        for index, token_id in zip(drawn, tokens, strict=True):
            outcomes[index] = token_id
    return outcomes


def _draw(scores: Tensor, best: NDArray[np.float32], rows: list[Row], scan: Scan) -> list[int]:
    ranks = np.array([row.params.top_k if _closes_by_rank(row.params) else _RANK for row in rows])
    windows = scan.windows(scores, ranks)
    masses = _masses(scores, best, rows, scan)
    draws = [uniform(row.key, row.position) for row in rows]
    tokens = [
        choose(window, row.params, draw, mass)
        for window, row, draw, mass in zip(windows, rows, draws, masses, strict=True)
    ]
    open_rows = [index for index, token_id in enumerate(tokens) if token_id is None]
    if open_rows:
        whole = _take(scores, open_rows).detach().float().cpu().numpy()
        for index, row_scores in zip(open_rows, whole, strict=True):
            tokens[index] = choose_from_row(row_scores, rows[index].params, draws[index])
    return [token_id for token_id in tokens if token_id is not None]


def _masses(
    scores: Tensor, best: NDArray[np.float32], rows: list[Row], scan: Scan
) -> list[tuple[float, float]]:
    """Bounds of each row's mass, where its window cannot do without."""
    bounds = [UNKNOWN_MASS] * len(rows)
    needed = [index for index, row in enumerate(rows) if _needs_mass(row.params)]
    if needed:
        inverse = [min(1.0 / rows[i].params.temperature, MAX_INVERSE_TEMPERATURE) for i in needed]
        inverses = np.array(inverse, dtype=np.float32)
        sums = scan.masses(_take(scores, needed), best[needed], inverses)
        for index, mass in zip(needed, sums.tolist(), strict=True):
            bounds[index] = (mass * (1 - MASS_ERROR), mass * (1 + MASS_ERROR))
    return bounds


def _closes_by_rank(params: SamplingParams) -> bool:
    return 0 < params.top_k <= MAX_RANK


def _needs_mass(params: SamplingParams) -> bool:
    if params.top_k > 0:
        return False
    return params.top_p < 1.0 or (params.min_p == 0.0 and params.typical_p == 1.0)


def _take(logits: Tensor, rows: Sequence[int]) -> Tensor:
    if len(rows) == logits.shape[0]:
        return logits
    return logits[torch.tensor(rows, device=logits.device)]


def _with_logprobs(logits: Tensor, rows: Sequence[Row], outcomes: list[Outcome]) -> list[Sampled]:
    sampled = [
        Sampled(-1, error=outcome) if isinstance(outcome, str) else Sampled(outcome) for outcome in outcomes
    ]
    asked = {
        i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None and not sampled[i].error
    }
    if asked:
        chosen = [sampled[index].token_id for index in asked]
        scored = score_rows(_take(logits, list(asked)), chosen, list(asked.values()))
        for index, logprobs in zip(asked, scored, strict=True):
            sampled[index] = Sampled(sampled[index].token_id, logprobs)
    return sampled
