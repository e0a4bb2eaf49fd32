"""Steps on a CPU, run by the native kernels: one call for all layers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.cache.storage import KVStorage
from corral.engine.run.adapters import Adapter, AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.runner import NextLogits, wanted_rows
from corral.engine.sampling.scan_native import NativeScan
from corral.kernels import structures as c
from corral.kernels.library import Pool
from corral.kernels.packed import PackedMatrix, pack
from corral.kernels.packed_llama import PackedLlama
from corral.kernels.program import Spans, Step, run
from corral.kernels.structures import SPAN

_CACHE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}
_PAIRS = 4  # bfloat16 in the order in which the kernels multiply it
_NO_BLOCKS = np.zeros(0, np.int32)


class NativeRunner:
    """A `Runner` whose numbers are the same bits in any company and with any number of threads."""

    def __init__(
        self, model: PackedLlama, storage: KVStorage, adapters: AdapterSet, pool: Pool, *, exact: bool = False
    ) -> None:
        self._storage, self._adapters, self._pool = storage, adapters, pool
        self._scan = NativeScan(pool)
        in_pairs = (
            model.library.reads_pairs
            and storage.kv_dtype == "bfloat16"
            and storage.block_size % 16 == 0
            and storage.head_dim % 32 == 0
        )
        layers = [
            c.CacheLayer(
                type=_PAIRS if in_pairs else _CACHE_TYPES[data.dtype],
                data=data.data_ptr(),
                scales=None if scales is None else scales.data_ptr(),
                slots=storage.num_blocks * storage.block_size,
                block_size=storage.block_size,
            )
            for data, scales in storage.layers()
        ]
        self._layers = model.layers_program(layers, exact=exact)
        self._head = model.head_program(exact=exact)
        self._sites = {
            "layers": _Sites(model, model.layer_sites),
            "head": _Sites(model, model.head_sites),
        }

    def run(self, spans: Sequence[Span]) -> Tensor:
        step = self._layers_step(spans)
        run(self._pool, step)
        return torch.from_numpy(step.out)

    def logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        step = self._head_step(hidden.contiguous().numpy(), adapters)
        run(self._pool, step)
        return torch.from_numpy(step.out)

    def next_logits(self, spans: Sequence[Span]) -> NextLogits:
        layers = self._layers_step(spans)
        head = self._head_step(layers.out, [span.adapter for span in spans for _ in span.wanted], best=True)
        run(self._pool, layers, head)
        return NextLogits(torch.from_numpy(head.out), head.best, self._scan)

    def _layers_step(self, spans: Sequence[Span]) -> Step:
        return self._layers.step(
            np.array([token for span in spans for token in span.tokens], np.int64),
            np.array([position for span in spans for position in range(span.start, span.end)], np.int64),
            _spans(spans, self._storage.block_size),
            np.array(wanted_rows(spans), np.int64),
            self._addresses("layers", [span.adapter for span in spans]),
        )

    def _head_step(
        self, hidden: NDArray[np.float32], adapters: Sequence[str | None], *, best: bool = False
    ) -> Step:
        addresses = self._addresses("head", adapters)
        spans = None
        if addresses is not None:
            rows = np.array([(row, 1, 0, 0) for row in range(len(hidden))], SPAN)
            spans = Spans(rows, _NO_BLOCKS)
        return self._head.step_of_rows(hidden, spans, addresses, best=best)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._storage.copy_blocks(pairs)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        self._storage.clear_blocks(blocks)

    def _addresses(self, part: str, names: Sequence[str | None]) -> NDArray[np.uint64] | None:
        """The address of each sequence's adapter, if any sequence has one."""
        if not any(names):
            return None
        sites = self._sites[part]
        return np.array([0 if n is None else sites.address(self._adapters.find(n)) for n in names], np.uint64)


class _Sites:
    """Adapters packed for the sites of a program, made when they are first used."""

    def __init__(self, model: PackedLlama, names: Sequence[str]) -> None:
        self._modules = [model.network.get_submodule(name) for name in names]
        self._packed: WeakKeyDictionary[Adapter, tuple[ctypes.Array[c.AdapterSite], list[PackedMatrix]]]
        self._packed = WeakKeyDictionary()

    def address(self, adapter: Adapter) -> int:
        packed = self._packed.get(adapter)
        if packed is None:
            packed = self._packed[adapter] = self._pack(adapter)
        return ctypes.addressof(packed[0])

    def _pack(self, adapter: Adapter) -> tuple[ctypes.Array[c.AdapterSite], list[PackedMatrix]]:
        sites = (c.AdapterSite * len(self._modules))()
        alive = []
        for site, module in zip(sites, self._modules, strict=True):
            if module not in adapter.layers:
                continue
            down, up = (pack(matrix.float()) for matrix in adapter.layers[module])
            site.down, site.up = ctypes.pointer(down.struct), ctypes.pointer(up.struct)
            alive += [down, up]
        return sites, alive


def _spans(spans: Sequence[Span], block_size: int) -> Spans:
    """The spans of a step and the used parts of their block tables, end to end."""
    lengths = [-(-span.end // block_size) for span in spans]
    tables = np.fromiter(
        chain.from_iterable(s.blocks[:n] for s, n in zip(spans, lengths, strict=True)), np.int32, sum(lengths)
    )
    fields, row, table = [], 0, tables.ctypes.data
    for span, length in zip(spans, lengths, strict=True):
        fields.append((row, len(span.tokens), span.start, table))
        row += len(span.tokens)
        table += tables.itemsize * length
    return Spans(np.array(fields, SPAN), tables)
