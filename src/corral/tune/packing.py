"""Packing: short documents share a row of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

_OPEN_ROWS = 1024  # rows that still take documents: bounds the search, and how far a document may be moved


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of up to `capacity` tokens each, as indices into `lengths`.

    Best fit: a document goes into the fullest of the open rows that has room for it (Johnson et al., 1974,
    section 2), in the order given, so that an epoch stays shuffled. A document that is longer than the
    capacity gets a row of its own. Rows come in the order in which they were begun.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for index, length in enumerate(lengths):
        place = bisect_left(open_rows, (length, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
            rows[row].append(index)
        else:
            room, row = capacity, len(rows)
            rows.append([index])
        left = room - length
        if left > 0:
            insort(open_rows, (left, row))
        if len(open_rows) > _OPEN_ROWS:
            open_rows.pop(0)  # the fullest: hardly anything fits into it
    return rows
