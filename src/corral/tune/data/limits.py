"""Items that are longer than they may be."""

from __future__ import annotations

import numpy as np

from corral.tune.examples import Example, Item, Pair, Rated


def longest_document(item: Item) -> int:
    """Tokens of the longest document of an item, which is what a bound holds for."""
    if isinstance(item, Pair):
        return max(len(item.chosen), len(item.rejected))
    return len(item)


def cut(item: Item, max_length: int) -> Item:
    """The item without what lies behind a number of tokens in each of its documents."""
    match item:
        case Example():
            return _cut_example(item, max_length)
        case Pair():
            return Pair(_cut_example(item.chosen, max_length), _cut_example(item.rejected, max_length))
        case Rated():
            prompt = item.prompt[:max_length]
            return Rated(prompt, item.completion[: max_length - len(prompt)], item.desirable)


def is_trained(item: Item) -> bool:
    """Whether anything can be learnt from an item: each of its documents has a trained token."""
    match item:
        case Example():
            return bool(item.trained.any())
        case Pair():
            return bool(item.chosen.trained.any() and item.rejected.trained.any())
        case Rated():
            return len(item.completion) > 0 and len(item) > 1


def is_undecided(item: Item) -> bool:
    """Whether a preference is one between two equal completions."""
    return isinstance(item, Pair) and np.array_equal(item.chosen.tokens, item.rejected.tokens)


def _cut_example(example: Example, max_length: int) -> Example:
    trained = example.trained[:max_length]
    (places,) = np.nonzero(trained)
    # Nothing learns from what stands behind the last trained token.
    stop = int(places[-1]) + 1 if len(places) and len(example) > max_length else len(trained)
    return Example(example.tokens[:stop], trained[:stop])
