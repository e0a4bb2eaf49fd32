"""What one step computes: the tokens of several sequences, laid side by side in one flat row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The new tokens of one sequence.

    Attributes:
        tokens: the new token ids.
        start: the position of the first of them: so many tokens of the sequence are cached already.
        blocks: the sequence's blocks, which have room for `start + len(tokens)` tokens.
        wanted: for which of the new tokens the hidden state is wanted, as offsets into `tokens`.
        adapter: the name under which the adapter is loaded, if one is used.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    wanted: Sequence[int]
    adapter: str | None = None

    @property
    def end(self) -> int:
        """Tokens of the sequence that are cached after the step."""
        return self.start + len(self.tokens)
