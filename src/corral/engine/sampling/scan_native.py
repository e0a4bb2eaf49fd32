"""`Scan` by the native kernels: all threads of an engine share the rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling import scan_numpy
from corral.engine.sampling.scan import BestTokens
from corral.engine.sampling.window import COLUMNS, LOWEST, MAX_RANK, Window, sorted_window
from corral.kernels import structures as c
from corral.kernels.library import Pool

_ROOM = 4 * MAX_RANK  # tokens of a window


class NativeScan:
    """Reads logits of float32 on the CPU."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def best_tokens(self, logits: Tensor) -> BestTokens:
        return scan_numpy.best_tokens(logits)

    def windows(self, logits: Tensor, ranks: NDArray[np.int64]) -> list[Window]:
        num_rows, vocab_size = logits.shape
        if vocab_size < COLUMNS or not _is_direct(logits):
            return scan_numpy.windows(logits, ranks)
        ranks = np.ascontiguousarray(ranks, np.int64)
        bounds, counts = np.empty(num_rows, np.float32), np.empty(num_rows, np.int64)
        places = np.empty((num_rows, _ROOM), np.int32)
        call = c.Best(
            logits=logits.data_ptr(),
            rows=num_rows,
            columns=vocab_size,
            folds=COLUMNS,
            ranks=ranks.ctypes.data,
            lowest=LOWEST,
            room=_ROOM,
            bounds=bounds.ctypes.data,
            counts=counts.ctypes.data,
            places=places.ctypes.data,
        )
        self._pool.library.find_best(self._pool, call)
        windows = []
        for row, scores in enumerate(logits.numpy()):
            count = int(counts[row])
            if count > _ROOM:  # equal ones are not cut apart
                windows += scan_numpy.windows(logits[row : row + 1], ranks[row : row + 1])
                continue
            ids = places[row, :count].astype(np.int64)
            complete = bool(bounds[row] == LOWEST) or count == vocab_size
            windows.append(sorted_window(ids, scores[ids], complete))
        return windows

    def masses(
        self, logits: Tensor, best: NDArray[np.float32], inverse_temperatures: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if not _is_direct(logits):
            return scan_numpy.masses(logits, best, inverse_temperatures)
        best, factors = np.ascontiguousarray(best), np.ascontiguousarray(inverse_temperatures)
        sums = np.empty(len(best), np.float32)
        self._pool.library.exp_sums(
            self._pool,
            logits.data_ptr(),
            logits.shape[0],
            logits.shape[1],
            best.ctypes.data,
            factors.ctypes.data,
            sums.ctypes.data,
        )
        return sums


def _is_direct(logits: Tensor) -> bool:
    return logits.dtype == torch.float32 and logits.is_contiguous()
