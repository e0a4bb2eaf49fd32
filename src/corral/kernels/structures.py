"""The plain structures of the native library, field by field (native/src/matrix.h, kernels.h, program.h)."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint8, c_void_p

import numpy as np

SPAN = np.dtype([("first_row", "i8"), ("rows", "i8"), ("start", "i8"), ("blocks", "u8")])


class Matrix(ctypes.Structure):
    """A packed matrix."""

    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("padded_columns", c_int64),
        ("codes", c_int32),
        ("scales", c_int32),
        ("has_offsets", c_int32),
        ("group", c_int32),
        ("zero", c_int32),
        ("levels", c_uint8 * 16),
        ("data", c_void_p),
        ("block_bytes", c_int64),
        ("scales_at", c_int64),
        ("offsets_at", c_int64),
    )


class CacheLayer(ctypes.Structure):
    """The keys and values of one layer."""

    _fields_ = (
        ("type", c_int32),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("slots", c_int64),
        ("block_size", c_int32),
    )


class Heads(ctypes.Structure):
    """Heads of an attention."""

    _fields_ = (("q_heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32), ("scale", c_float))


class BufferSpec(ctypes.Structure):
    """Columns of a buffer, and the forms of its rows."""

    _fields_ = (("columns", c_int64), ("forms", c_int32))


class Op(ctypes.Structure):
    """An operation."""

    _fields_ = (
        ("kind", c_int32),
        ("source", c_int32),
        ("out", c_int32),
        ("matrix", c_int32),
        ("layer", c_int32),
        ("add", c_int32),
        ("site", c_int32),
        ("column", c_int32),
        ("eps", c_float),
        ("unused", c_int32),
        ("weights", c_void_p),
    )


class ProgramSpec(ctypes.Structure):
    """An operation list with all that it refers to."""

    _fields_ = (
        ("heads", Heads),
        ("exact", c_int32),
        ("inverse_frequencies", c_void_p),
        ("matrices", POINTER(POINTER(Matrix))),
        ("layers", POINTER(CacheLayer)),
        ("buffers", POINTER(BufferSpec)),
        ("ops", POINTER(Op)),
        ("num_matrices", c_int32),
        ("num_layers", c_int32),
        ("num_buffers", c_int32),
        ("num_ops", c_int32),
        ("result", c_int32),
        ("unused", c_int32),
    )


class AdapterSite(ctypes.Structure):
    """The low-rank matrices of an adapter at one place."""

    _fields_ = (("down", POINTER(Matrix)), ("up", POINTER(Matrix)))


class Step(ctypes.Structure):
    """A step of a program, and where its result goes."""

    _fields_ = (
        ("program", c_void_p),
        ("batch", c_void_p),
        ("out", c_void_p),
        ("best", c_void_p),
        ("best_ids", c_void_p),
    )


class Best(ctypes.Structure):
    """The best of each row of logits: `corral_best` of native/include/corral_native.h."""

    _fields_ = (
        ("logits", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("folds", c_int64),
        ("ranks", c_void_p),
        ("lowest", c_float),
        ("room", c_int64),
        ("bounds", c_void_p),
        ("counts", c_void_p),
        ("places", c_void_p),
    )


class Batch(ctypes.Structure):
    """What one step is about."""

    _fields_ = (
        ("rows", c_int64),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("input", c_void_p),
        ("spans", c_void_p),
        ("adapters", c_void_p),
        ("wanted", c_void_p),
        ("num_spans", c_int64),
        ("num_wanted", c_int64),
    )
