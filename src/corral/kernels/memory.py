"""Memory for weights: in huge pages where the system has them, and in pieces that share those pages."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20
ALIGNMENT = 64  # a vector, and a line of the processor's cache


class Memory:
    """Hands out memory that begins as zeros.

    A stream of weights that is read from pages of 4 kB spends 5 to 12 percent of its time on looking up
    pages. Small matrices would each end in such pages, so they are cut from larger regions. A region lives
    until the last of its pieces is gone; what is never touched takes no memory. `region_bytes` of 0 gives
    every piece memory of its own.
    """

    def __init__(self, region_bytes: int = 64 << 20) -> None:
        self._region_bytes = region_bytes
        self._rest = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Zeros [num_bytes] that begin at a multiple of 64 bytes."""
        taken = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        if taken >= self._region_bytes // 2:
            return _region(taken)[:num_bytes]
        if taken > len(self._rest):
            self._rest = _region(self._region_bytes)
        piece, self._rest = self._rest[:num_bytes], self._rest[taken:]
        return piece


def _region(num_bytes: int) -> NDArray[np.uint8]:
    """Zeros [num_bytes]; if they are many, they begin where a huge page may begin."""
    if num_bytes < HUGE_PAGE:
        data = np.zeros(num_bytes + ALIGNMENT, np.uint8)
        start = -data.ctypes.data % ALIGNMENT
        return data[start : start + num_bytes]
    size = -(-num_bytes // HUGE_PAGE) * HUGE_PAGE
    # Shared memory, which Python maps by default, gets no huge pages. No call asks for an alignment.
    region = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(region, np.uint8)  # keeps the region alive
    start = -data.ctypes.data % HUGE_PAGE
    return data[start : start + num_bytes]
