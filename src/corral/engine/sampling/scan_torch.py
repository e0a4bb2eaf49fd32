"""`Scan` on any device, with one transfer of the results for each call."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling.window import COLUMNS, LOWEST, Window, cut_rows


def best_tokens(logits: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    values, ids = logits.max(dim=1)
    both = torch.stack([values.double(), ids.double()]).cpu().numpy()  # an id is exact as a double
    return both[0].astype(np.float32), both[1].astype(np.int64)


def windows(logits: Tensor, ranks: NDArray[np.int64]) -> list[Window]:
    num_rows, vocab_size = logits.shape
    columns = min(COLUMNS, vocab_size)
    folded = logits[:, : vocab_size // columns * columns].view(num_rows, -1, columns)
    ranks = np.minimum(ranks, columns)
    maxima = folded.amax(dim=1).topk(int(ranks.max()), dim=1).values
    last = torch.from_numpy(ranks - 1).to(logits.device)[:, None]
    bounds = maxima.gather(1, last).float().clamp(min=float(LOWEST))
    places = (logits >= bounds).flatten().nonzero()[:, 0]
    scores = logits.flatten()[places]
    moved = torch.cat([bounds[:, 0].double(), places.double(), scores.double()]).cpu().numpy()
    limits, found = moved[:num_rows].astype(np.float32), moved[num_rows:].reshape(2, -1)
    return cut_rows(found[0].astype(np.int64), found[1].astype(np.float32), limits, vocab_size)


def masses(
    logits: Tensor, best: NDArray[np.float32], inverse_temperatures: NDArray[np.float32]
) -> NDArray[np.float32]:
    both = torch.from_numpy(np.stack([best, inverse_temperatures])).to(logits.device)
    exponents = (logits.float() - both[0, :, None]).mul_(both[1, :, None])
    sums: NDArray[np.float32] = exponents.exp_().sum(dim=1).cpu().numpy()
    return sums
