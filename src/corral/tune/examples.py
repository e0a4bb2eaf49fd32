"""What is trained on, as token ids: the rows of a data set after rendering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Example:
    """One document. `trained[i]` says that predicting `tokens[i]` from those before it is trained.

    Both have shape [n]. The first token is never trained: nothing predicts it.
    """

    tokens: Tokens
    trained: Mask

    def __post_init__(self) -> None:
        assert self.tokens.shape == self.trained.shape, "a mask for each token"
        assert len(self.tokens) > 0, "a document has tokens"
        assert not self.trained[0], "nothing predicts the first token"

    def __len__(self) -> int:
        """Tokens."""
        return len(self.tokens)

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())


@dataclass(frozen=True, eq=False)
class Pair:
    """A preference: two completions of one prompt, each a document with its completion trained."""

    chosen: Example
    rejected: Example

    def __len__(self) -> int:
        """Tokens of both."""
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, eq=False)
class Rated:
    """A completion that is desirable, or not."""

    prompt: Tokens
    completion: Tokens
    desirable: bool

    def __len__(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)

    @property
    def example(self) -> Example:
        return joined(self.prompt, self.completion)


Item = Example | Pair | Rated


def joined(prompt: Tokens, completion: Tokens) -> Example:
    """The document of a prompt and its completion, which is trained."""
    trained = np.zeros(len(prompt) + len(completion), dtype=np.bool_)
    trained[max(1, len(prompt)) :] = True
    return Example(np.concatenate([prompt, completion]), trained)
