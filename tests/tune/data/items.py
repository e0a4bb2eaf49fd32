"""Items as text, to compare with what was said."""

from __future__ import annotations

import numpy as np

from corral.text.tokenizer import Tokenizer
from corral.tune.examples import Example, Item, Pair, Rated


def trained_spans(example: Example, tokenizer: Tokenizer) -> list[str]:
    """What each run of trained tokens spells."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], example.trained, [False]])))
    return [tokenizer.decode(example.tokens[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def text_of(example: Example, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(example.tokens.tolist())


def as_example(item: Item) -> Example:
    assert isinstance(item, Example)
    return item


def as_pair(item: Item) -> Pair:
    assert isinstance(item, Pair)
    return item


def as_rated(item: Item) -> Rated:
    assert isinstance(item, Rated)
    return item
