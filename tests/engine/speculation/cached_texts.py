"""Texts whose blocks are managed as in the engine, and a runner that shows what was cached when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from corral.engine.cache.block_table import BlockTable
from corral.engine.run.batch import Span
from corral.engine.sampling.history import History
from corral.engine.sampling.params import SamplingParams
from corral.engine.speculation.draft_model import DraftModel, DraftRequest
from tests.engine.slot_cache import SlotCache

BLOCK_SIZE = 4
VOCABULARY = 8  # of the runner that does not compute
GREEDY = SamplingParams(temperature=0.0)


class PrefixRunner(SlotCache):
    """A runner whose cached value for a token stands for all tokens before it, as they were cached.

    The best next token is a function of that value, and so of everything in the cache that a real model would
    have read. `num_tokens` counts what was computed.
    """

    def __init__(self) -> None:
        super().__init__(BLOCK_SIZE)
        self.num_tokens = 0

    def run(self, spans: Sequence[Span]) -> Tensor:
        wanted = []
        for span in spans:
            self.num_tokens += len(span.tokens)
            for offset, token in enumerate(span.tokens):
                position = span.start + offset
                before = self.slots.get(self.slot(span.blocks, position - 1), -1) if position else -1
                value = extended(before, token, position)
                self.slots[self.slot(span.blocks, position)] = value
                if offset in span.wanted:
                    wanted.append(value)
        return torch.tensor(wanted, dtype=torch.long)

    def logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        assert len(adapters) == len(hidden)
        return torch.nn.functional.one_hot(hidden % VOCABULARY, VOCABULARY).float()


def extended(value: int, token: int, position: int) -> int:
    """The value of a token that comes after one of this value."""
    return hash((value if position else 0, token)) & 0xFFFFFFFF


def continuation(tokens: Sequence[int], count: int) -> list[int]:
    """The tokens that a PrefixRunner with everything rightly cached finds best."""
    value = 0
    text: list[int] = []
    for position in range(len(tokens) + count):
        if position >= len(tokens):
            text.append(value % VOCABULARY)
        token = tokens[position] if position < len(tokens) else text[-1]
        value = extended(value, token, position)
    return text


@dataclass(eq=False)
class Text:
    """A sequence as the engine keeps it."""

    tokens: list[int]
    table: BlockTable
    params: SamplingParams = GREEDY
    key: int = 0
    computed: int = field(init=False)

    def __post_init__(self) -> None:
        self.computed = self.table.adopt_prefix(self.tokens, len(self.tokens) - 1)
        self.history = History(self.params, self.tokens)

    def reserve(self, draft: DraftModel, limit: int) -> bool:
        """Makes room for a step with guesses, as the scheduler does."""
        pairs = self.table.reserve(self.computed, len(self.tokens) + limit)
        if pairs:
            draft.copy_blocks(pairs)
        return pairs is not None

    def request(self, limit: int) -> DraftRequest:
        return DraftRequest(self.tokens, self.table.blocks, self.params, self.history, self.key, limit)

    def append(self, tokens: Sequence[int]) -> None:
        """Keeps tokens of which the target has computed all but the last."""
        self.tokens.extend(tokens)
        for token in tokens:
            self.history.push(token)
        self.computed = len(self.tokens) - 1
        self.table.commit(self.tokens, self.computed)

    def fork(self) -> Text:
        twin = Text.__new__(Text)
        twin.__dict__.update(self.__dict__)
        twin.tokens, twin.table, twin.history = list(self.tokens), self.table.fork(), self.history.fork()
        return twin
