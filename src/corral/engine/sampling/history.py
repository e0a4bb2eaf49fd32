"""Which tokens a sequence holds, and how often: what the penalties need to know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from corral.engine.sampling.params import SamplingParams

_ROOM = 64  # tokens


class History:
    """The distinct tokens of one sequence and how often the output holds each; grows token by token.

    The prompt counts for the repetition penalty alone, so it is left out where there is none; without any
    penalty nothing is kept at all, and `penalizes` is False.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        repeats = params.repetition_penalty != 1.0
        self.penalizes = repeats or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self._ids = np.array(sorted(set(prompt)) if repeats else (), dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._size = len(self._ids)
        self._places = {token_id: place for place, token_id in enumerate(self._ids.tolist())}

    def push(self, token_id: int) -> None:
        """Takes in a generated token."""
        if not self.penalizes:
            return
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = self._size
            self._make_room()
            self._ids[place] = token_id
            self._size += 1
        self._counts[place] += 1

    def fork(self) -> History:
        """A copy that grows on its own."""
        other = object.__new__(History)
        other.penalizes = self.penalizes
        other._ids, other._counts = self._ids.copy(), self._counts.copy()
        other._size, other._places = self._size, dict(self._places)
        return other

    def counts(self, drafts: Sequence[int] = ()) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Distinct ids, and how often the output with the drafts after it holds each (0: the prompt alone).

        The arrays are views where there are no drafts: use them before the next `push`.
        """
        ids, counts = self._ids[: self._size], self._counts[: self._size]
        if not drafts or not self.penalizes:
            return ids, counts
        new = {token_id: 0.0 for token_id in drafts if token_id not in self._places}
        places = {token_id: self._size + index for index, token_id in enumerate(new)}
        ids = np.concatenate([ids, np.fromiter(new, np.int64, len(new))])
        counts = np.concatenate([counts, np.zeros(len(new), np.float32)])
        for token_id in drafts:
            counts[places.get(token_id, self._places.get(token_id, -1))] += 1
        return ids, counts

    def _make_room(self) -> None:
        if self._size == len(self._ids):
            more = max(_ROOM, self._size)
            self._ids = np.concatenate([self._ids, np.zeros(more, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.float32)])
