"""What is done to logits before a token is chosen from them: masks, bans, bias and penalties.

Their order is that of vLLM, see `sampler`. All rows of a step are edited together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling.rows import Row


def edit_logits(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The edited logits [R, vocab] as float32; those given are left as they are.

    A token that may not come gets minus infinity.
    """
    scores = logits.to(torch.float32, copy=True).contiguous()
    _mask(scores, rows)
    _ban(scores, rows)
    _add_bias(scores, rows)
    _penalize(scores, rows)
    return scores


def _mask(scores: Tensor, rows: Sequence[Row]) -> None:
    vocab_size = scores.shape[1]
    for index, row in enumerate(rows):
        if row.allowed is None:
            continue
        bits = row.allowed.cpu().numpy().view(np.uint8)
        allowed = np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)
        if scores.device.type == "cpu":  # several times as fast as masked_fill_
            np.copyto(scores[index].numpy(), -math.inf, where=~allowed)
        else:
            scores[index].masked_fill_(torch.from_numpy(~allowed).to(scores.device), -math.inf)


def _ban(scores: Tensor, rows: Sequence[Row]) -> None:
    vocab_size = scores.shape[1]
    places = [index * vocab_size + i for index, row in enumerate(rows) for i in row.banned]
    if places:
        scores.view(-1)[torch.tensor(places, device=scores.device)] = -math.inf


def _add_bias(scores: Tensor, rows: Sequence[Row]) -> None:
    vocab_size = scores.shape[1]
    bias = {
        index * vocab_size + token_id: value
        for index, row in enumerate(rows)
        for token_id, value in row.params.logit_bias.items()
    }
    if bias:
        places = torch.tensor(list(bias), device=scores.device)
        values = torch.tensor(list(bias.values()), dtype=torch.float32, device=scores.device)
        scores.view(-1)[places] += values


def _penalize(scores: Tensor, rows: Sequence[Row]) -> None:
    """One gather and one scatter for the distinct tokens of all rows."""
    penalized = [(index, row) for index, row in enumerate(rows) if row.history.penalizes]
    if not penalized:
        return
    parts = [_penalties(row, index * scores.shape[1]) for index, row in penalized]
    places, factors, deductions = (
        torch.from_numpy(np.concatenate(part)).to(scores.device) for part in zip(*parts, strict=True)
    )
    flat = scores.view(-1)
    seen = flat[places]
    flat[places] = torch.where(seen < 0, seen * factors, seen / factors) - deductions


def _penalties(row: Row, start: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Places of the row's tokens among all logits, what divides or multiplies each, and what is deducted."""
    params = row.params
    ids, counts = row.history.counts(row.drafts)
    factors = np.full(len(ids), params.repetition_penalty, np.float32)
    deductions = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    return ids + start, factors, deductions.astype(np.float32)
