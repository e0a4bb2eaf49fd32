"""The memory of weights."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from corral.kernels.memory import ALIGNMENT, HUGE_PAGE, Memory


def mapping(data: NDArray[np.uint8]) -> str:
    """What Linux says of the mapping in which an array lies."""
    address, entries = data.ctypes.data, Path("/proc/self/smaps").read_text()
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", entries, flags=re.MULTILINE)[1:]:
        first, last = (int(end, 16) for end in entry.split(" ", 1)[0].split("-"))
        if first <= address < last:
            return entry
    raise AssertionError("no mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("num_bytes", [HUGE_PAGE, 40 << 20, 100 << 20])
def test_large_pieces_are_private_and_may_be_in_huge_pages(num_bytes: int) -> None:
    found = mapping(Memory().take(num_bytes))
    assert found.split(" ", 2)[1] == "rw-p"
    if hasattr(mmap, "MADV_HUGEPAGE") and Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert " hg" in found.split("VmFlags:", 1)[1]


def test_pieces_are_zeros_of_their_own_at_aligned_addresses() -> None:
    memory = Memory(1 << 20)
    pieces = [memory.take(size) for size in (1, 63, 64, 65, 3 << 19, 100, 0, 1 << 20)]
    for i, piece in enumerate(pieces):
        assert not piece.any()
        assert piece.ctypes.data % ALIGNMENT == 0
        piece[:] = i + 1
    assert all((piece == i + 1).all() for i, piece in enumerate(pieces))
