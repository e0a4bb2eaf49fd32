"""`Scan` on the CPU: in blocks of rows that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling.window import COLUMNS, LOWEST, Window, cut_rows

_BLOCK = 1 << 19  # logits at a time: 2 MiB of float32


def best_tokens(logits: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    values, ids = [], []
    for _, block in _blocks(logits):
        best = block.argmax(axis=1)
        ids.append(best)
        values.append(block[np.arange(len(block)), best])
    return np.concatenate(values), np.concatenate(ids)


def windows(logits: Tensor, ranks: NDArray[np.int64]) -> list[Window]:
    return [window for rows, block in _blocks(logits) for window in _windows_of_block(block, ranks[rows])]


def masses(
    logits: Tensor, best: NDArray[np.float32], inverse_temperatures: NDArray[np.float32]
) -> NDArray[np.float32]:
    sums = np.empty(len(best), dtype=np.float32)
    room = np.empty((_rows_at_once(logits), logits.shape[1]), dtype=np.float32)
    for rows, block in _blocks(logits):
        exponents = np.subtract(block, best[rows, None], out=room[: len(block)])
        exponents *= inverse_temperatures[rows, None]
        sums[rows] = np.exp(exponents, out=exponents).sum(axis=1)
    return sums


def _rows_at_once(logits: Tensor) -> int:
    return min(len(logits), max(1, _BLOCK // logits.shape[1]))


def _blocks(logits: Tensor) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """A few rows at a time, as float32: to be read, and only until the next are asked for."""
    step = _rows_at_once(logits)
    direct = logits.dtype == torch.float32 and logits.is_contiguous()
    room = None if direct else torch.empty(step, logits.shape[1], dtype=torch.float32)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        part = logits[rows].detach()
        yield rows, (part if room is None else room[: len(part)].copy_(part)).numpy()


def _windows_of_block(block: NDArray[np.float32], ranks: NDArray[np.int64]) -> list[Window]:
    num_rows, vocab_size = block.shape
    columns = min(COLUMNS, vocab_size)
    folded = block[:, : vocab_size // columns * columns].reshape(num_rows, -1, columns)
    maxima = np.sort(folded.max(axis=1), axis=1)
    bounds = maxima[np.arange(num_rows), columns - np.minimum(ranks, columns)]
    bounds = np.maximum(bounds, LOWEST)
    places = np.flatnonzero(block >= bounds[:, None])
    return cut_rows(places, block.reshape(-1)[places], bounds, vocab_size)
