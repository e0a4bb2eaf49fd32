"""A model that knows nothing: random tokens among those that are allowed, with a leaning towards the end."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.grammar.matcher import Matcher
from corral.text.tokenizer import Tokenizer

CLOSING = ('"', "}", "]", '"}', '"]', '",', ",", "}}", "0", "@", "Z", ".", ")")


def allowed_ids(mask: Tensor) -> NDArray[np.int64]:
    """The ids that a mask allows, in order."""
    return np.unpackbits(mask.numpy().view(np.uint8), bitorder="little").nonzero()[0]


def allows(mask: Tensor, token_id: int) -> bool:
    """Whether a mask allows an id."""
    return bool(mask.numpy().view(np.uint8)[token_id // 8] >> (token_id % 8) & 1)


class RandomModel:
    """Writes texts through a matcher. The longer a text is, the more it leans towards its end."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], seed: int) -> None:
        self._stop_ids = stop_ids
        self._closing = {tokenizer.encode(text)[-1] for text in CLOSING}
        self._random = random.Random(seed)

    def choose(self, mask: Tensor, position: int) -> int:
        allowed = allowed_ids(mask)
        if self._random.random() < 0.2 + position / 100:
            for preferred in (self._stop_ids, self._closing):
                found = allowed[np.isin(allowed, sorted(preferred))]
                if len(found):
                    return int(self._random.choice(found))
        return int(self._random.choice(allowed))

    def write(self, matcher: Matcher, most: int = 2000) -> list[int]:
        """Tokens up to the stop id, which is left out."""
        tokens: list[int] = []
        for position in range(most):
            token = self.choose(matcher.masks()[0], position)
            matcher.accept(token)
            if matcher.finished:
                return tokens
            tokens.append(token)
        raise AssertionError(f"no end after {most} tokens")
