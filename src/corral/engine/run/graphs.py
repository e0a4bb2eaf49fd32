"""Decode steps that are captured once and replayed: one CUDA graph for each size of batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from corral.engine.cache.block_pool import SCRATCH_BLOCK
from corral.engine.cache.storage import KVStorage
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.paged_attention import PagedAttention
from corral.engine.run.runner import TorchRunner
from corral.model.llama import Llama


class Capture(Protocol):
    """Takes a function of no arguments over tensors that stay where they are; gives one that does the same
    work again, into the same result."""

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]: ...


class CudaCapture:
    """Captures a function as a CUDA graph. All graphs share one pool of memory: they never run together."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries allocate their workspaces in a first run, outside the graph
            function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = function()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class GraphRunner(TorchRunner):
    """A `TorchRunner` whose plain decode steps are replayed.

    The batch and the longest block table are rounded up to powers of two; a step of each such size is
    captured when it first comes. Rows beyond the batch write to the scratch block. Steps with prompts,
    guesses or adapters run op by op.
    """

    def __init__(self, model: Llama, storage: KVStorage, adapters: AdapterSet, capture: Capture) -> None:
        super().__init__(model, storage, adapters)
        self._capture = capture
        self._steps: dict[tuple[int, int], _DecodeStep] = {}

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        if any(len(s.tokens) > 1 or not s.wanted or s.adapter is not None for s in spans):
            return super().run(spans)
        size = self._storage.block_size
        most_blocks = max(-(-span.end // size) for span in spans)
        key = _power_of_two(len(spans)), _power_of_two(most_blocks)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _DecodeStep(self._model, self._storage, *key, self._capture)
        return step(spans)


class _DecodeStep:
    """A decode step of fixed size, over buffers that are filled anew each time."""

    def __init__(self, model: Llama, storage: KVStorage, rows: int, blocks: int, capture: Capture) -> None:
        self._model, self._storage = model, storage
        self._rows, self._blocks = rows, blocks
        # Of each row: token, position, slot, length, and the block table.
        self._inputs = torch.zeros(rows, 4 + blocks, dtype=torch.long, device=model.device)
        self._inputs[:, 3] = 1
        self._replay = capture(self._forward)

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        rows = [self._row(span) for span in spans]
        rows += [[0, 0, 0, 1] + [SCRATCH_BLOCK] * self._blocks] * (self._rows - len(spans))
        self._inputs.copy_(torch.tensor(rows, dtype=torch.long))
        return self._replay()[: len(spans)].clone()

    def _row(self, span: Span) -> list[int]:
        size = self._storage.block_size
        table = list(span.blocks[: -(-span.end // size)])
        slot = table[span.start // size] * size + span.start % size
        padding = [SCRATCH_BLOCK] * (self._blocks - len(table))
        return [span.tokens[0], span.start, slot, span.end, *table, *padding]

    def _forward(self) -> Tensor:
        tokens, positions, slots, lengths = self._inputs[:, :4].unbind(1)
        attend = PagedAttention.decode(self._storage, slots, self._inputs[:, 4:], lengths)
        hidden: Tensor = self._model(tokens, positions, attend)
        return hidden


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
