"""Models that are run over windows of text, for the scores of every next token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.devices import pick_device, pick_dtype
from corral.engine.cache.block_pool import SCRATCH_BLOCK
from corral.engine.cache.sizing import fit_cache
from corral.engine.cache.storage import KVStorage, resolve_kv_dtype
from corral.engine.networks import Network, Runners, load_network, native_library
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.errors import RequestError
from corral.evals.errors import EvalError
from corral.evals.windows import Window
from corral.text.tokenizer import check_fits

_ROWS = 128  # whose logits exist at once


@dataclass(frozen=True)
class ModelSetup:
    """A model and how it is run. Names and values are those of `LLM` and `EngineOptions`.

    Raises:
        RequestError: a value is none of those that there are; the message names it.
    """

    model: str | Path
    dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    threads: int | None = None
    exact_activations: bool = False
    kv_cache_dtype: str = "auto"
    quantize: str | None = None

    def __post_init__(self) -> None:
        pick_dtype(self.dtype, self.place)
        native_library(self.options, self.place)

    @property
    def place(self) -> torch.device:
        """The device itself."""
        return pick_device(self.device)

    @property
    def options(self) -> EngineOptions:
        """What of it is the engine's."""
        return EngineOptions(
            kernels=self.kernels,
            threads=self.threads,
            exact_activations=self.exact_activations,
            kv_cache_dtype=self.kv_cache_dtype,
            quantize=self.quantize,
        )

    def to_dict(self) -> dict[str, Any]:
        """The model as it runs, with what "auto" stands for: plain data."""
        library = native_library(self.options, self.place)
        dtype = pick_dtype(self.dtype, self.place)
        threads = torch.get_num_threads() if library is None else library.cores
        return {
            "model": str(self.model),
            "dtype": str(dtype).removeprefix("torch."),
            "as_stored": self.dtype == "auto" and library is not None,
            "device": self.place.type,
            "kernels": "torch" if library is None else f"native {library.isa}",
            "threads": self.threads or threads,
            "exact_activations": self.exact_activations,
            "kv_cache_dtype": resolve_kv_dtype(self.kv_cache_dtype, dtype),
            "quantize": self.quantize,
        }


class TextModel:
    """A model that is open, its weights not yet read: enough to cut texts into windows.

    Raises:
        CorralError: the model cannot be found or read; the message says why.
    """

    def __init__(self, setup: ModelSetup, report: Report = silent) -> None:
        self.setup, self._report = setup, report
        self.checkpoint = open_model(str(setup.model), report)
        self.config = self.checkpoint.config
        self.tokenizer = self.checkpoint.tokenizer()
        check_fits(self.tokenizer, self.config.vocab_size)

    def check(self, context: int) -> None:
        """Raises EvalError where the model has no such context."""
        try:
            replace(self.setup.options, max_model_len=context).check(self.config)
        except RequestError:
            longest = f"{self.setup.model} has one of {self.config.max_position_embeddings:,} tokens"
            raise EvalError(f"context is {context:,}, but {longest}; ask for less") from None

    def load(self, context: int) -> Scorer:
        """Reads the weights, to run windows of up to `context` tokens.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of the wrong shape; the message names it.
            RequestError: there is no room for the keys and values of one window.
        """
        options = replace(self.setup.options, max_model_len=context)
        network = load_network(
            self.checkpoint, self.setup.dtype, self.setup.place, options, self._report.notice
        )
        return Scorer(network, options, context)


class Scorer:
    """A network that gives the scores of what follows the tokens of windows.

    It runs prompts as an engine does, through the same kernels and the same key-value cache: what is measured
    is what requests are answered with.

    Args:
        network: with its weights.
        options: of the engine; the device's bound of a step holds here too.
        context: tokens of the longest window.
    """

    def __init__(self, network: Network, options: EngineOptions, context: int) -> None:
        runners = Runners(options, network.device)
        network = runners.prepare(network)
        chunk = options.scheduler(network.device.type).prefill_chunk
        room = replace(options, max_model_len=context, max_num_seqs=-(-chunk // context))
        fit = fit_cache(network, room, room.scheduler(network.device.type))
        self._block_size, self._chunk = options.block_size, chunk
        storage = KVStorage(
            network.config, fit.num_blocks, self._block_size, fit.kv_dtype, network.dtype, network.device
        )
        self._runner = runners.runner(network, storage, AdapterSet(network))
        self.room = min(chunk, (fit.num_blocks - 1) * self._block_size)
        """Tokens of several windows that are run together."""

    def batches(self, windows: Sequence[Window], room: int | None = None) -> Iterator[list[Window]]:
        """Windows in their order, several together where they are short; `room` limits them further."""
        most = min(self.room, room or self.room)
        batch: list[Window] = []
        taken = 0
        for window in windows:
            size = self._num_blocks(window) * self._block_size
            if batch and taken + size > most:
                yield batch
                batch, taken = [], 0
            batch.append(window)
            taken += size
        if batch:
            yield batch

    def logits(self, batch: Sequence[Window]) -> Iterator[Tensor]:
        """Scores from which the counted tokens of a batch are predicted, in their order: [rows, vocab_size],
        of at most 128 tokens at a time."""
        hidden = self._hidden(batch)
        for start in range(0, len(hidden), _ROWS):
            rows = hidden[start : start + _ROWS]
            yield self._runner.logits(rows, [None] * len(rows))

    def _hidden(self, batch: Sequence[Window]) -> Tensor:
        """What the counted tokens are predicted from: [counted tokens, hidden_size]."""
        longest = max(map(len, batch))
        assert len(batch) == 1 or longest <= self._chunk, "chunks of several windows would lie mixed"
        tables = self._tables(batch)
        parts = []
        for start in range(0, longest - 1, self._chunk):
            spans = [self._span(w, table, start) for w, table in zip(batch, tables, strict=True)]
            parts.append(self._runner.run([span for span in spans if span.tokens]))
        return torch.cat(parts)

    def _span(self, window: Window, table: Sequence[int], start: int) -> Span:
        """A chunk of a window. Nothing is wanted of its last token, so that it is not run."""
        tokens = window.tokens[:-1][start : start + self._chunk]
        return Span(tokens, start, table, range(max(window.first - 1 - start, 0), len(tokens)))

    def _tables(self, batch: Sequence[Window]) -> list[list[int]]:
        """Blocks for each window. Nothing of former batches is seen: a token sees what its window wrote."""
        tables, end = [], SCRATCH_BLOCK + 1
        for window in batch:
            start, end = end, end + self._num_blocks(window)
            tables.append(list(range(start, end)))
        return tables

    def _num_blocks(self, window: Window) -> int:
        return -(-len(window) // self._block_size)
