"""Runs an operation list natively: one call for a whole step."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corral.kernels import structures as c
from corral.kernels.library import Library, Pool
from corral.kernels.lower import Op, OpKind, OpList
from corral.kernels.packed import PackedMatrix

_FLOAT, _BFLOAT16, _CODES16, _CODES32 = 1, 2, 4, 8


@dataclass(frozen=True)
class Spans:
    """The sequences of a step as the native library takes them: [spans] of `structures.SPAN`, and what their
    block tables point to."""

    array: NDArray[np.void]
    tables: NDArray[np.int32]


Sites = "ctypes.Array[c.AdapterSite]"


@dataclass(frozen=True)
class Step:
    """A step that is ready to run.

    Attributes:
        out: its result [rows, columns], once it has run.
        best: where asked for, of each row the largest number and its first place; NaN is the largest.
        alive: what `call` points to.
    """

    call: c.Step
    out: NDArray[np.float32]
    best: tuple[NDArray[np.float32], NDArray[np.int64]] | None
    alive: object


def run(pool: Pool, *steps: Step) -> None:
    """Runs steps, of one program or several, one after the other. Other Python threads go on meanwhile.

    Raises:
        KernelError: the pool has been closed.
    """
    pool.library.run_steps(pool, (c.Step * len(steps))(*(step.call for step in steps)))


class Program:
    """An operation list with its weights and buffers, ready to run.

    Args:
        library: the native library.
        ops: what to compute.
        matrices, vectors: by the names that the operations use; vectors are float32. They are kept alive.
        heads: of the attention.
        layers: of the KV cache, whose memory must outlive the program.
        inverse_frequencies: float32 [head_dim / 2], where there is attention.
        exact: multiply quantized weights with bfloat16 activations instead of 8-bit ones.
    """

    def __init__(
        self,
        library: Library,
        ops: OpList,
        matrices: Mapping[str, PackedMatrix],
        vectors: Mapping[str, NDArray[np.float32]],
        heads: c.Heads,
        layers: Sequence[c.CacheLayer] = (),
        inverse_frequencies: NDArray[np.float32] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self._library = library
        self._alive = [matrices, vectors, layers, inverse_frequencies]
        self._columns = ops.buffers[ops.result]
        buffer_ids = {name: i for i, name in enumerate(ops.buffers)}
        matrix_ids = {name: i for i, name in enumerate(ops.matrices)}
        site_ids = {name: i for i, name in enumerate(ops.sites)}
        packed = [matrices[name] for name in ops.matrices]
        spec = c.ProgramSpec(
            heads=heads,
            exact=exact,
            inverse_frequencies=None if inverse_frequencies is None else inverse_frequencies.ctypes.data,
            matrices=(ctypes.POINTER(c.Matrix) * len(packed))(*(ctypes.pointer(m.struct) for m in packed)),
            layers=(c.CacheLayer * len(layers))(*layers),
            buffers=(c.BufferSpec * len(buffer_ids))(
                *(c.BufferSpec(n, f) for n, f in _buffers(ops, matrices, exact).values())
            ),
            ops=(c.Op * len(ops.ops))(
                *(_op(op, buffer_ids, matrix_ids, site_ids, vectors) for op in ops.ops)
            ),
            num_matrices=len(packed),
            num_layers=len(layers),
            num_buffers=len(buffer_ids),
            num_ops=len(ops.ops),
            result=buffer_ids[ops.result],
        )
        self._handle = library.create_program(spec)

    def step(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        spans: Spans,
        wanted: NDArray[np.int64],
        adapters: NDArray[np.uint64] | None,
    ) -> Step:
        """Hidden states [wanted, hidden_size] of tokens [T] at positions [T].

        `wanted` are rows of the flat batch, ascending. `adapters` [spans] holds the address of each span's
        array of `AdapterSite`, or 0.
        """
        batch = c.Batch(
            rows=len(tokens),
            tokens=tokens.ctypes.data,
            positions=positions.ctypes.data,
            spans=spans.array.ctypes.data,
            adapters=None if adapters is None else adapters.ctypes.data,
            wanted=wanted.ctypes.data,
            num_spans=len(spans.array),
            num_wanted=len(wanted),
        )
        return self._step(batch, len(wanted), (tokens, positions, spans, wanted, adapters))

    def step_of_rows(
        self,
        rows: NDArray[np.float32],
        spans: Spans | None = None,
        adapters: NDArray[np.uint64] | None = None,
        *,
        best: bool = False,
    ) -> Step:
        """The result [rows, columns] for rows [rows, columns] of the input; `spans` go with `adapters`."""
        batch = c.Batch(rows=len(rows), input=rows.ctypes.data)
        if spans is not None and adapters is not None:
            batch.spans, batch.num_spans = spans.array.ctypes.data, len(spans.array)
            batch.adapters = adapters.ctypes.data
        return self._step(batch, len(rows), (rows, spans, adapters), best=best)

    def _step(self, batch: c.Batch, rows: int, alive: object, *, best: bool = False) -> Step:
        out = np.empty((rows, self._columns), np.float32)
        call = c.Step(self._handle, ctypes.addressof(batch), out.ctypes.data)
        if not best:
            return Step(call, out, None, (batch, alive))
        values, ids = np.empty(rows, np.float32), np.empty(rows, np.int64)
        call.best, call.best_ids = values.ctypes.data, ids.ctypes.data
        return Step(call, out, (values, ids), (batch, alive))

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            self._library.destroy_program(handle)


def _buffers(ops: OpList, matrices: Mapping[str, PackedMatrix], exact: bool) -> dict[str, tuple[int, int]]:
    """Columns and forms of each buffer: the forms that the operations want which read it."""
    forms = dict.fromkeys(ops.buffers, 0)
    forms[ops.result] = _FLOAT
    for op in ops.ops:
        if op.kind is OpKind.MATMUL:
            forms[op.source] |= _form(matrices[op.matrix], exact)
        elif op.kind is not OpKind.LORA and op.source:
            forms[op.source] |= _FLOAT
    return {name: (columns, forms[name]) for name, columns in ops.buffers.items()}


def _form(matrix: PackedMatrix, exact: bool) -> int:
    if not matrix.is_quantized:
        return _FLOAT if matrix.is_float32 else _BFLOAT16
    if exact:
        return _BFLOAT16
    return _CODES32 if matrix.struct.group % 32 == 0 else _CODES16


def _op(
    op: Op,
    buffers: Mapping[str, int],
    matrices: Mapping[str, int],
    sites: Mapping[str, int],
    vectors: Mapping[str, NDArray[np.float32]],
) -> c.Op:
    return c.Op(
        kind=op.kind,
        source=buffers.get(op.source, 0),
        out=buffers[op.out],
        matrix=matrices.get(op.matrix, 0),
        layer=op.layer,
        add=op.add,
        site=sites.get(op.matrix, 0),
        column=op.column,
        eps=op.eps,
        weights=vectors[op.vector].ctypes.data if op.vector else None,
    )
