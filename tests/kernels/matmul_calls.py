"""Calls of single kernels of the native library: matrix products, and what makes activations ready for them.

The packing here is written for the eye, straight from the comment in native/src/matrix.h.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, byref, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral.kernels import library
from corral.kernels.library import LibraryMissingError
from corral.kernels.structures import Matrix

LANES = 16
CODES = {"f32": 0, "bf16": 1, "u8": 2, "u4": 3, "lut4": 4}
SCALES = {"none": 0, "f16": 1, "f32": 2}

Floats = NDArray[np.float32]


class _Activations(ctypes.Structure):
    _fields_ = (
        ("columns", c_int64),
        ("f32", c_void_p),
        ("bf16", c_void_p),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("group", c_int32),
    )


class _Matmul(ctypes.Structure):
    _fields_ = (
        ("matrix", POINTER(Matrix)),
        ("x", _Activations),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("add", c_bool),
        ("exact", c_bool),
    )


class _Kernels(ctypes.Structure):
    """The function table of native/src/kernels.h."""

    _fields_ = (
        ("name", c_char_p),
        ("matmul", CFUNCTYPE(None, POINTER(_Matmul), c_int64, c_int64, c_int64, c_int64, c_void_p)),
        ("matmul_scratch", CFUNCTYPE(c_size_t, POINTER(Matrix))),
        ("quantize", CFUNCTYPE(None, c_void_p, c_int64, POINTER(_Activations), c_int64)),
        *((f"other{i}", c_void_p) for i in range(7)),
        ("argmax", CFUNCTYPE(None, c_void_p, c_int64, POINTER(c_float), POINTER(c_int64))),
    )


@cache
def _library() -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(os.environ.get("CORRAL_TEST_LIBRARY") or str(library._installed_path()))
    except (LibraryMissingError, OSError):
        return None
    loaded.corral_pick.restype = c_void_p
    loaded.corral_pick.argtypes = (c_char_p, POINTER(c_char_p))
    loaded.corral_isas.restype = c_char_p
    return loaded


def instruction_sets() -> list[str]:
    """Those that this machine runs; none where the library was not built."""
    loaded = _library()
    return loaded.corral_isas().decode().split() if loaded else []


@cache
def _table(isa: str) -> Any:
    loaded = _library()
    assert loaded
    return ctypes.cast(loaded.corral_pick(isa.encode(), byref(c_char_p())), POINTER(_Kernels)).contents


def aligned(num_bytes: int, alignment: int = 64) -> NDArray[np.uint8]:
    """Zeros that begin at a multiple of `alignment`."""
    room = np.zeros(num_bytes + alignment, np.uint8)
    return room[-room.ctypes.data % alignment :][:num_bytes]


def to_bf16(x: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of bfloat16, rounded to nearest even; finite values only."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Floats:
    """The values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Weights:
    """A matrix [rows, columns] before it is packed.

    Attributes:
        kind: a key of CODES.
        values: [rows, columns]: floats, bits of bfloat16, or codes.
        scales, offsets: [rows, groups], float16 or float32; None for f32 and bf16, no offsets if None.
        group: columns that share a scale; 0 for all of a row.
    """

    kind: str
    values: NDArray[Any]
    scales: NDArray[Any] | None = None
    offsets: NDArray[Any] | None = None
    group: int = 0
    zero: int = 0
    levels: NDArray[np.uint8] | None = None

    def expanded(self, parts: NDArray[Any]) -> NDArray[np.float64]:
        """What belongs to groups, for each column, in float64."""
        columns = self.values.shape[1]
        return np.repeat(parts.astype(np.float64), self.group or columns, axis=1)[:, :columns]

    def integers(self) -> NDArray[np.float64]:
        """Codes, or the levels that they stand for, minus the zero point."""
        codes = self.values if self.levels is None else self.levels[self.values]
        return codes.astype(np.float64) - self.zero

    def dense(self) -> NDArray[np.float64]:
        """The weights as numbers."""
        if self.kind == "f32":
            return self.values.astype(np.float64)
        if self.kind == "bf16":
            return from_bf16(self.values).astype(np.float64)
        assert self.scales is not None
        weights = self.integers() * self.expanded(self.scales)
        return weights if self.offsets is None else weights + self.expanded(self.offsets)


class Packed:
    """`Weights` in blocks of 16 rows, and the structure that describes them.

    Args:
        weights: what is packed.
        scales_first: the order in a block that is fast; the kernels take the codes first as well.
    """

    def __init__(self, weights: Weights, *, scales_first: bool = True) -> None:
        rows, columns = weights.values.shape
        padded = -(-columns // 32) * 32
        blocks = -(-rows // LANES)
        values = np.zeros((blocks * LANES, padded), weights.values.dtype)
        values[:rows, :columns] = weights.values
        group = weights.group or padded
        parts = [_codes(weights.kind, values.reshape(blocks, LANES, padded))]
        for factors in (weights.scales, weights.offsets):
            if factors is not None:
                full = np.zeros((blocks * LANES, -(-padded // group)), factors.dtype)
                full[:rows, : factors.shape[1]] = factors
                lanes = full.reshape(blocks, LANES, -1).transpose(0, 2, 1)  # [blocks, groups, 16]
                parts.append(np.ascontiguousarray(lanes).view(np.uint8).reshape(blocks, -1))
        parts = [*parts[1:], parts[0]] if scales_first else parts
        starts = np.cumsum([0] + [-(-part.shape[1] // 64) * 64 for part in parts])
        self.data = aligned(int(blocks * starts[-1]))
        for part, start in zip(parts, starts, strict=False):
            self.data.reshape(blocks, -1)[:, start : start + part.shape[1]] = part
        codes_at = int(starts[len(parts) - 1]) if scales_first else 0
        factors_at = [int(at) - codes_at for at in starts[0 if scales_first else 1 :]]
        self.codes_at = codes_at
        kind = "none" if weights.scales is None else {2: "f16", 4: "f32"}[weights.scales.itemsize]
        self.blocks = blocks
        self.struct = Matrix(
            rows=rows,
            columns=columns,
            padded_columns=padded,
            codes=CODES[weights.kind],
            scales=SCALES[kind],
            has_offsets=weights.offsets is not None,
            group=group,
            zero=weights.zero,
            data=self.data.ctypes.data + codes_at,
            block_bytes=int(starts[-1]),
            scales_at=factors_at[0] if len(parts) > 1 else 0,
            offsets_at=factors_at[1] if len(parts) > 2 else 0,
        )
        if weights.levels is not None:
            self.struct.levels[:] = weights.levels.tolist()


def _codes(kind: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """[blocks, 16, columns] -> the bytes of each block."""
    blocks, lanes, columns = values.shape
    if kind == "f32":
        order = values.transpose(0, 2, 1)
    elif kind in ("bf16", "u8"):
        neighbours = 2 if kind == "bf16" else 4
        order = values.reshape(blocks, lanes, columns // neighbours, neighbours).transpose(0, 2, 1, 3)
    else:
        halves = values.reshape(blocks, lanes, columns // 8, 2, 4)
        order = (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(order).view(np.uint8).reshape(blocks, -1)


class Prepared:
    """Rows of activations [rows, columns] in every form, as `quantize` of an instruction set makes them.

    Attributes:
        f32, bf16, codes: [rows, padded columns].
        scales, sums: [rows, padded columns / group].
    """

    def __init__(self, isa: str, x: Floats, group: int) -> None:
        rows, columns = x.shape
        padded = -(-columns // 32) * 32
        self.f32 = np.full((rows, padded), 7, np.float32)
        self.bf16 = np.full((rows, padded), 7, np.uint16)
        self.codes = np.full((rows, padded), 7, np.int8)
        self.scales = np.full((rows, padded // group), 7, np.float32)
        self.sums = np.full((rows, padded // group), 7, np.int32)
        forms = (self.f32, self.bf16, self.codes, self.scales, self.sums)
        self.struct = _Activations(padded, *(form.ctypes.data for form in forms), group)
        x = np.ascontiguousarray(x)
        for row in range(rows):
            _table(isa).quantize(x[row].ctypes.data, columns, byref(self.struct), row)

    def values(self) -> NDArray[np.float64]:
        """What the codes stand for."""
        group = self.struct.group
        return self.codes.astype(np.float64) * np.repeat(self.scales.astype(np.float64), group, axis=1)


def matmul_call(
    isa: str,
    packed: Packed,
    x: Prepared,
    out: Floats,
    *,
    bias: Floats | None = None,
    add: bool = False,
    exact: bool = False,
) -> Callable[[tuple[int, int], tuple[int, int]], None]:
    """A function that multiplies a range of rows with a range of blocks. Threads may share it."""
    call = _Matmul(
        ctypes.pointer(packed.struct),
        x.struct,
        None if bias is None else bias.ctypes.data,
        out.ctypes.data,
        out.strides[0] // 4,
        add,
        exact,
    )
    table = _table(isa)
    scratch_bytes = table.matmul_scratch(byref(packed.struct))
    mine = threading.local()

    def run(rows: tuple[int, int], blocks: tuple[int, int]) -> None:
        if not hasattr(mine, "scratch"):
            mine.scratch = aligned(scratch_bytes)
        table.matmul(byref(call), *rows, *blocks, mine.scratch.ctypes.data)

    run.keep = (packed, x, out, bias, call)  # type: ignore[attr-defined]
    return run


def matmul(isa: str, packed: Packed, x: Prepared, **options: Any) -> Floats:
    """[rows of x, rows of the matrix], in one call."""
    rows = len(x.f32)
    out = np.full((rows, packed.struct.rows), 7, np.float32)
    matmul_call(isa, packed, x, out, **options)((0, rows), (0, packed.blocks))
    return out


def argmax(isa: str, x: Floats) -> tuple[float, int]:
    """The largest number and its first place."""
    value, index = c_float(), c_int64()
    _table(isa).argmax(x.ctypes.data, len(x), byref(value), byref(index))
    return value.value, index.value
