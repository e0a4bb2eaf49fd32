"""How deep and how wide a JSON text is, without parsing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 2**17  # bytes looked at together: bounds the memory, whatever the text is
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_OPENING, _CLOSING = b"[{", b"]}"


def problem_of(body: bytes, max_depth: int, max_items: int) -> str | None:
    """What is wrong with the shape of a JSON text; None where it is within its bounds, or no JSON at all.

    `max_items` bounds the commas and opening brackets outside of strings: so many values may there be.
    """
    opened = sum(body.count(mark) for mark in (b"[", b"{"))
    if opened <= max_depth and opened + body.count(b",") <= max_items:
        return None  # so it is even if none of them stands in a string: the ordinary case
    shape = _Shape()
    for start in range(0, len(body), _CHUNK):
        shape.add(body[start : start + _CHUNK])
        if shape.deepest > max_depth:
            return f"the body is nested more than {max_depth} levels deep, the most that this server takes"
        if shape.items > max_items:
            return f"the body has more than {max_items} values, the most that this server takes"
    return None


@dataclass
class _Shape:
    """What has been seen of a text: between two chunks it may stand in a string, behind a backslash."""

    depth: int = 0
    deepest: int = 0
    items: int = 0
    in_string: bool = False
    escapes: bool = False

    def add(self, chunk: bytes) -> None:
        import numpy as np

        text = np.frombuffer(b"\\" + chunk if self.escapes else chunk, np.uint8)
        marks = np.flatnonzero(np.isin(text, np.frombuffer(b'"[]{},', np.uint8)))
        kinds = text[marks]
        quotes = kinds == _QUOTE
        escaped, self.escapes = _escaped(text, marks[quotes])
        quotes[quotes] = ~escaped
        parity = np.cumsum(quotes) + int(self.in_string)
        outside = kinds[(parity % 2 == 0) & ~quotes]
        if len(parity):
            self.in_string = bool(parity[-1] % 2)
        steps = np.isin(outside, np.frombuffer(_OPENING, np.uint8)).astype(np.int64)
        self.items += int(steps.sum()) + int((outside == _COMMA).sum())
        steps -= np.isin(outside, np.frombuffer(_CLOSING, np.uint8))
        depths = self.depth + np.cumsum(steps)
        if len(depths):
            self.depth, self.deepest = int(depths[-1]), max(self.deepest, int(depths.max()))


def _escaped(text: NDArray[np.uint8], places: NDArray[np.intp]) -> tuple[NDArray[np.bool_], bool]:
    """Which of these places stand behind an odd number of backslashes, and whether the text's end does."""
    import numpy as np

    slashes = np.flatnonzero(text == _BACKSLASH)
    if not len(slashes):
        return np.zeros(len(places), bool), False
    begins = np.ones(len(slashes), bool)
    begins[1:] = slashes[1:] != slashes[:-1] + 1
    run_begin = np.maximum.accumulate(np.where(begins, slashes, 0))
    ends = np.append(places, len(text))
    nearest = np.searchsorted(slashes, ends) - 1
    behind = (nearest >= 0) & (slashes[nearest] == ends - 1)
    odd = behind & ((ends - run_begin[nearest]) % 2 == 1)
    return odd[:-1], bool(odd[-1])
