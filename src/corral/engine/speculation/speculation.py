"""Speculation at work: how much to guess, and who guesses."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Row
from typing import Protocol

from corral.engine.sampling.random import choice_key
from corral.engine.scheduler import Work
from corral.engine.sequence import Sequence
from corral.engine.speculation.control import DraftControl, DraftState
from corral.engine.speculation.draft_model import DraftModel, DraftRequest
from corral.engine.speculation.prompt_lookup import PromptLookup

logger = logging.getLogger(__name__)


class Proposer(Protocol):
    """Makes the guesses."""

    def propose(self, works: Row[Work]) -> list[list[int]]:
        """At most `max_drafts` guesses for each share of a step."""

    def forget(self, sequence: Sequence) -> None:
        """Is told that a sequence has ended."""

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        """Is told that cached blocks were copied."""

    def clear_blocks(self, blocks: Row[int]) -> None:
        """Is told that cached blocks were set to zero."""


class Speculation:
    """A `Speculator` that guesses as much as pays. Where guessing fails, the step goes on without."""

    def __init__(self, control: DraftControl, proposer: Proposer) -> None:
        self._control, self._proposer = control, proposer
        self._states: dict[Sequence, DraftState] = {}

    def draft_length(self, sequence: Sequence, num_decodes: int) -> int:
        state = self._states.setdefault(sequence, DraftState())
        left = sequence.owner.max_tokens - sequence.num_generated - 1
        return min(left, self._control.draft_length(state, len(sequence.tokens), num_decodes))

    def propose(self, works: Row[Work]) -> list[list[int]]:
        if not any(work.max_drafts for work in works):
            return [[] for _ in works]
        try:
            return self._proposer.propose(works)
        except Exception as error:
            logger.warning("guessing failed; the step goes on without: %s", error, exc_info=error)
            return [[] for _ in works]

    def record(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        state = self._states.setdefault(sequence, DraftState())
        self._control.record(state, len(sequence.tokens) + accepted + 1, drafted, accepted)

    def record_step(self, works: Row[Work], drafts: Row[list[int]], seconds: float) -> None:
        if all(work.sequence.decodes for work in works):
            self._control.record_step(len(works), len(works) + sum(map(len, drafts)), seconds)

    def forget(self, sequence: Sequence) -> None:
        self._states.pop(sequence, None)
        self._proposer.forget(sequence)

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        self._proposer.copy_blocks(pairs)

    def clear_blocks(self, blocks: Row[int]) -> None:
        self._proposer.clear_blocks(blocks)


class LookupProposer:
    """Guesses what the sequence's grammar leaves no choice about, or what followed the same text before."""

    def __init__(self) -> None:
        self._lookups: dict[Sequence, tuple[PromptLookup, int]] = {}

    def propose(self, works: Row[Work]) -> list[list[int]]:
        return [self._guess(work) if work.max_drafts else [] for work in works]

    def forget(self, sequence: Sequence) -> None:
        self._lookups.pop(sequence, None)

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None: ...

    def clear_blocks(self, blocks: Row[int]) -> None: ...

    def _guess(self, work: Work) -> list[int]:
        tokens = work.sequence.tokens
        lookup, known = self._lookups.get(work.sequence) or (PromptLookup(()), 0)
        lookup.extend(tokens[known:])
        self._lookups[work.sequence] = lookup, len(tokens)
        matcher = work.sequence.matcher
        forced = [] if matcher is None else matcher.forced()
        return forced[: work.max_drafts] or lookup.propose(work.max_drafts)


class DraftModelProposer:
    """Guesses what a smaller model would say."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model

    def propose(self, works: Row[Work]) -> list[list[int]]:
        asked = [i for i, work in enumerate(works) if work.max_drafts]
        guesses = self._model.propose([_request(works[i]) for i in asked])
        drafts: list[list[int]] = [[] for _ in works]
        for i, guess in zip(asked, guesses, strict=True):
            drafts[i] = guess
        return drafts

    def forget(self, sequence: Sequence) -> None: ...

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        self._model.copy_blocks(pairs)

    def clear_blocks(self, blocks: Row[int]) -> None:
        self._model.clear_blocks(blocks)


def _request(work: Work) -> DraftRequest:
    sequence = work.sequence
    owner, params = sequence.owner, sequence.owner.request.params
    return DraftRequest(
        tokens=sequence.tokens,
        blocks=sequence.table.blocks,
        params=params,
        history=sequence.history,
        key=choice_key(owner.seed, sequence.index),
        limit=work.max_drafts,
        stops=owner.stops,
        min_length=sequence.num_prompt + params.min_tokens,
    )
