"""Log-probabilities of the model, before anything is done to its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from corral.engine.events import TokenLogprob, TokenLogprobs
from corral.engine.sampling.scan import scan_on
from corral.engine.sampling.window import Window

_BLOCK = 1 << 21  # logits at a time: 8 MiB of float32


def score_rows(logits: Tensor, chosen: Sequence[int], top: int | Sequence[int]) -> list[TokenLogprobs]:
    """For each row of logits [R, vocab] the chosen token and the `top` best ones, of all rows or of each.

    Log-probabilities are float32; tokens of equal logits have the same rank, and stand in the order of their
    ids. A row that is not finite gives NaN.
    """
    tops = [top] * len(chosen) if isinstance(top, int) else list(top)
    step = max(1, _BLOCK // logits.shape[1])
    scored: list[TokenLogprobs] = []
    for start in range(0, len(chosen), step):
        rows = slice(start, start + step)
        scored.extend(_score_block(logits[rows], chosen[rows], tops[rows]))
    return scored


def next_token_logprobs(logits: Tensor, top: int, token_ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """From logits [vocab]: the `top` best tokens, then those of `token_ids` that are not among them."""
    row = logits[None]
    logprobs = _log_softmax(row)
    best = _best(row, logprobs, [top])[0]
    known = {token.token_id for token in best}
    others = [token_id for token_id in dict.fromkeys(token_ids) if token_id not in known]
    if not others:
        return best
    return (*best, *_given(row.expand(len(others), -1), logprobs.expand(len(others), -1), others))


def _score_block(logits: Tensor, chosen: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    logprobs = _log_softmax(logits)
    tokens = _given(logits, logprobs, chosen)
    best = _best(logits, logprobs, tops)
    return [TokenLogprobs(token, top) for token, top in zip(tokens, best, strict=True)]


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.detach().float(), dim=1)


def _given(logits: Tensor, logprobs: Tensor, token_ids: Sequence[int]) -> list[TokenLogprob]:
    """One given token of each row. Ranks are those of the logits, which log-probabilities may round."""
    ids = torch.tensor(token_ids, device=logits.device)[:, None]
    ranks = 1 + (logits > logits.gather(1, ids)).sum(dim=1, keepdim=True)
    both = torch.cat([logprobs.gather(1, ids).double(), ranks.double()], dim=1).cpu().tolist()
    return [
        TokenLogprob(token_id, logprob, int(rank))
        for token_id, (logprob, rank) in zip(token_ids, both, strict=True)
    ]


def _best(logits: Tensor, logprobs: Tensor, tops: Sequence[int]) -> list[tuple[TokenLogprob, ...]]:
    """The best tokens of each row, so many as it asks for."""
    if not any(tops):
        return [()] * len(tops)
    windows = scan_on(logits.device).windows(logits, np.maximum(np.array(tops), 1))
    ids = [window.ids[:top] for window, top in zip(windows, tops, strict=True)]
    places = np.concatenate([row_ids + row * logits.shape[1] for row, row_ids in enumerate(ids)])
    values = logprobs.reshape(-1)[torch.from_numpy(places).to(logprobs.device)].cpu().numpy()
    ends = np.cumsum([len(row_ids) for row_ids in ids])[:-1]
    return [
        tuple(map(TokenLogprob, row_ids.tolist(), row_values.tolist(), _ranks(window, len(row_ids))))
        for window, row_ids, row_values in zip(windows, ids, np.split(values, ends), strict=True)
    ]


def _ranks(window: Window, count: int) -> list[int]:
    descending = -window.scores
    ranks: list[int] = (1 + descending.searchsorted(descending[:count])).tolist()
    return ranks
