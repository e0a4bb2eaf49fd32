"""Which tokens of a dialog are trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from corral.tune.examples import Mask, Tokens

TrainOnEos = Literal["turn", "last", "all", "none"]
Span = tuple[int, int]  # first token, and one after the last


def turns_of(produced: Mask, is_end: Mask) -> list[Span]:
    """The assistant's turns: runs of tokens that it produced [n].

    The token that ends a turn belongs to it, also where a chat template does not count it as produced.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], produced, [False]])))
    turns = []
    for start, end in edges.reshape(-1, 2).tolist():
        follows = end < len(is_end) and bool(is_end[end]) and not is_end[end - 1]
        turns.append((start, end + 1 if follows else end))
    return turns


def trained_tokens(
    turns: Sequence[Span],
    is_end: Mask,
    train_on_eos: TrainOnEos,
    *,
    whole: bool = False,
    untrained: Collection[int] = (),
) -> Mask:
    """The tokens [n] of a dialog that are trained; never the first, which nothing predicts.

    Args:
        turns: the assistant's.
        is_end: [n], whether a token ends a turn, anybody's.
        train_on_eos: whether ends are trained: of the trained turns ("turn"), all of them ("all"), only the
            dialog's last ("last"), or none.
        whole: every token is trained, not only the assistant's.
        untrained: turns that are left out, by their places.
    """
    trained = np.full(len(is_end), whole, dtype=np.bool_)
    for place, (start, end) in enumerate(turns):
        trained[start:end] = place not in untrained
    ends: NDArray[np.intp] = np.flatnonzero(is_end)
    if train_on_eos in ("none", "last"):
        trained[ends] = False
    if train_on_eos == "all":
        trained[ends] = True
    if train_on_eos == "last":
        trained[ends[-1:]] = True
    trained[:1] = False
    return trained


def ends_in(tokens: Tokens, end_ids: Collection[int]) -> Mask:
    """Whether each token ends a turn; the first never does, though in some vocabularies the same token begins
    a text."""
    found = np.isin(tokens, list(end_ids))
    found[:1] = False
    return found
