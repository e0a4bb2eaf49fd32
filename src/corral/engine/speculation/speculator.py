"""What the engine asks of speculation, and the engine that does without."""

from __future__ import annotations

from collections.abc import Sequence as Row
from typing import Protocol

from corral.engine.scheduler import Work
from corral.engine.sequence import Sequence


class Speculator(Protocol):
    """Guesses tokens ahead. Guesses change nothing but the speed: each is checked."""

    def draft_length(self, sequence: Sequence, num_decodes: int) -> int:
        """How many tokens to guess for a sequence, when so many sequences decode in the step."""

    def propose(self, works: Row[Work]) -> list[list[int]]:
        """At most `max_drafts` guesses for each share of a step."""

    def record(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Is told how many guesses for a sequence came true."""

    def record_step(self, works: Row[Work], drafts: Row[list[int]], seconds: float) -> None:
        """Is told how long a step took."""

    def forget(self, sequence: Sequence) -> None:
        """Is told that a sequence has ended."""

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        """Is told that cached blocks were copied."""

    def clear_blocks(self, blocks: Row[int]) -> None:
        """Is told that cached blocks were set to zero."""


class NoSpeculation:
    """Guesses nothing."""

    def draft_length(self, sequence: Sequence, num_decodes: int) -> int:
        return 0

    def propose(self, works: Row[Work]) -> list[list[int]]:
        return [[] for _ in works]

    def record(self, sequence: Sequence, drafted: int, accepted: int) -> None: ...

    def record_step(self, works: Row[Work], drafts: Row[list[int]], seconds: float) -> None: ...

    def forget(self, sequence: Sequence) -> None: ...

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None: ...

    def clear_blocks(self, blocks: Row[int]) -> None: ...
