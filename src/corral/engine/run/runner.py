"""The part of the engine that touches the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from corral.engine.cache.storage import KVStorage
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.paged_attention import PagedAttention
from corral.engine.sampling.scan import BestTokens, Scan
from corral.model.llama import Llama


@dataclass(frozen=True)
class NextLogits:
    """Scores of the next tokens.

    Attributes:
        logits: [rows, vocab_size].
        best: what `Scan.best_tokens` gives for them, if that is known already.
        scan: what reads them best; None for what suits the device.
    """

    logits: Tensor
    best: BestTokens | None = None
    scan: Scan | None = None


class Runner(Protocol):
    """Runs steps. Called by the engine's thread alone.

    A row's numbers must not depend on what else is in the step, as far as the arithmetic allows; and a step
    may be run again: it writes nothing but the keys and values of its own tokens.
    """

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Caches the spans' tokens; gives the hidden states [wanted rows, hidden_size], span after span."""

    def logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Scores of the next token [rows, vocab_size] for hidden states and the adapter of each."""

    def next_logits(self, spans: Sequence[Span]) -> NextLogits:
        """`run` and `logits` at once, of all wanted rows."""
        hidden = self.run(spans)
        return NextLogits(self.logits(hidden, [span.adapter for span in spans for _ in span.wanted]))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies cached blocks (source, target), all at once: no target is read."""

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Sets cached blocks to zero."""


class TorchRunner(Runner):
    """Runs steps with torch, op by op, on any device."""

    def __init__(self, model: Llama, storage: KVStorage, adapters: AdapterSet) -> None:
        self._model, self._storage, self._adapters = model, storage, adapters

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        tokens = list(chain.from_iterable(span.tokens for span in spans))
        positions = list(chain.from_iterable(range(span.start, span.end) for span in spans))
        hidden = self._model(
            self._ids(tokens),
            self._ids(positions),
            PagedAttention(self._storage, spans),
            self._adapters.project((span.adapter, len(span.tokens)) for span in spans),
        )
        wanted: Tensor = hidden[self._ids(wanted_rows(spans))]
        return wanted

    @torch.inference_mode()
    def logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        return self._model.logits(hidden, self._adapters.project((name, 1) for name in adapters))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._storage.copy_blocks(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._storage.clear_blocks(blocks)

    def _ids(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self._model.device, non_blocking=True)


def wanted_rows(spans: Sequence[Span]) -> list[int]:
    """The rows of the flat batch whose hidden states are wanted."""
    rows: list[int] = []
    start = 0
    for span in spans:
        rows.extend(start + offset for offset in span.wanted)
        start += len(span.tokens)
    return rows
