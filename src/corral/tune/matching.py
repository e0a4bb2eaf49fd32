"""Whether what was kept fits what is there, and if not, what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from corral.tune.errors import TuneError

_NOTHING = object()


def require_match(mine: Mapping[str, Tensor], kept: Mapping[str, Tensor], what: str) -> None:
    """Raises TuneError where kept tensors have other names, shapes or types than those they are for."""
    missing, foreign = mine.keys() - kept.keys(), kept.keys() - mine.keys()
    if missing or foreign:
        trouble, names = ("lacks", missing) if missing else ("has a foreign", foreign)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise TuneError(f"{what} {trouble} {min(names)}{more}; it belongs to other parameters or settings")
    for name, tensor in mine.items():
        other = kept[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise TuneError(
                f"{what} has {name} as {_form(other)}, and it is {_form(tensor)} here: it belongs to another "
                "model, rank or type"
            )


def differences(kept: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The values that differ between two pieces of plain data: dotted key, then, now; None where it lacks."""
    if isinstance(kept, Mapping) and isinstance(now, Mapping):
        for name in sorted({*kept, *now}):
            inner = f"{key}.{name}" if key else name
            yield from differences(kept.get(name, _NOTHING), now.get(name, _NOTHING), inner)
    elif kept is _NOTHING or now is _NOTHING or kept != now:
        yield key, None if kept is _NOTHING else kept, None if now is _NOTHING else now


def in_words(difference: tuple[str, Any, Any]) -> str:
    """A difference as "key is A there and B here"."""
    key, kept, now = difference
    return f"{key} is {_short(kept)} there and {_short(now)} here"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
