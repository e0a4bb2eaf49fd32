"""Calls of single kernels of the native library: attention and what is done row by row."""

from __future__ import annotations

import ctypes
import math
import os
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from corral.kernels import library
from corral.kernels.library import LibraryMissingError

CACHE_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2, "float16": 3}
PAIRS = 4


class _Call(ctypes.Structure):
    """corral_test_attention_call of native/src/test_attention.cpp."""

    _fields_ = [
        ("q_heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("scale", c_float),
        ("cache_type", c_int32),
        ("block_size", c_int32),
        ("slots", c_int64),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("blocks", c_void_p),
        ("q", c_void_p),
        ("out", c_void_p),
        ("rows", c_int64),
        ("start", c_int64),
        ("part_rows", c_int64),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    path = os.environ.get("CORRAL_TEST_LIBRARY")
    try:
        loaded = ctypes.CDLL(path or str(library._installed_path()))
    except LibraryMissingError:
        return None
    loaded.corral_pick.restype = c_void_p
    loaded.corral_pick.argtypes = (c_char_p, POINTER(c_char_p))
    loaded.corral_kernels_read_pairs.argtypes = (c_void_p,)
    loaded.corral_isas.restype = c_char_p
    floats, counts = c_void_p, c_int64
    signatures = {
        "attention": (POINTER(_Call),),
        "store": (POINTER(_Call), counts, c_void_p, floats, floats),
        "rms_norm": (floats, floats, c_float, counts, floats),
        "swiglu": (floats, floats, counts, floats),
        "rotate": (floats, c_int32, c_int32, floats, floats),
    }
    for name, arguments in signatures.items():
        function = getattr(loaded, f"corral_test_{name}")
        function.restype, function.argtypes = None, (c_void_p, *arguments)
    return loaded


def instruction_sets() -> list[str]:
    """What this machine runs; empty without the native library."""
    loaded = _library()
    return [] if loaded is None else loaded.corral_isas().decode().split()


@dataclass
class Cache:
    """One layer's cache as `KVStorage` lays it out, random: [2, K, slots, E].

    Attributes:
        data: in the type that is stored; scales: bfloat16 [2, K, slots], int8 only.
        pairs: the data lie in the order of CacheType::bf16_pairs.
    """

    data: Tensor
    scales: Tensor | None
    block_size: int
    pairs: bool = False

    @staticmethod
    def zeros(kind: str, kv_heads: int, slots: int, head_dim: int, block_size: int) -> Cache:
        data = torch.zeros(2, kv_heads, slots, head_dim, dtype=getattr(torch, kind))
        scales = torch.zeros(2, kv_heads, slots, dtype=torch.bfloat16) if kind == "int8" else None
        return Cache(data, scales, block_size)

    def in_pairs(self) -> Cache:
        """The same bfloat16 keys and values in pairs."""
        _, heads, slots, head_dim = self.data.shape
        keys = self.data[0].view(heads, slots // 16, 16, head_dim // 2, 2).transpose(2, 3)
        values = self.data[1].view(heads, slots // 2, 2, head_dim).transpose(2, 3)
        data = torch.stack([part.reshape(heads, slots, head_dim) for part in (keys, values)])
        return Cache(data, None, self.block_size, pairs=True)

    @property
    def kind(self) -> str:
        return str(self.data.dtype).removeprefix("torch.")

    def values(self) -> Tensor:
        """What is stored, as float64."""
        values = self.data.double()
        return values if self.scales is None else values * self.scales.double()[..., None]


class Kernels:
    """The kernels of one instruction set."""

    def __init__(self, isa: str) -> None:
        loaded = _library()
        assert loaded is not None
        self._c, self.isa = loaded, isa
        self._handle = loaded.corral_pick(isa.encode(), byref(c_char_p()))
        assert self._handle
        self.reads_pairs = bool(loaded.corral_kernels_read_pairs(self._handle))

    def attention(
        self,
        cache: Cache,
        blocks: Tensor,
        q: Tensor,
        start: int,
        part_rows: int = 32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attention of q [T, H, E] at positions `start` and on, in parts of `part_rows` rows."""
        q, blocks = q.contiguous(), blocks.to(torch.int32).contiguous()
        out = torch.empty_like(q) if out is None else out
        call = self._call(cache, q.shape[1])
        call.blocks, call.q, call.out = blocks.data_ptr(), q.data_ptr(), out.data_ptr()
        call.rows, call.start, call.part_rows = q.shape[0], start, part_rows
        self._c.corral_test_attention(self._handle, byref(call))
        return out

    def store(self, cache: Cache, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v [T, K, E] at slots [T]."""
        k, v, slots = k.contiguous(), v.contiguous(), slots.long().contiguous()
        call = self._call(cache, k.shape[1])
        self._c.corral_test_store(
            self._handle, byref(call), len(slots), slots.data_ptr(), k.data_ptr(), v.data_ptr()
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Of one row [C]."""
        out = torch.empty_like(x)
        self._c.corral_test_rms_norm(
            self._handle, x.data_ptr(), weight.data_ptr(), eps, x.numel(), out.data_ptr()
        )
        return out

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up of one row [C]."""
        out = torch.empty_like(gate)
        self._c.corral_test_swiglu(self._handle, gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr())
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [H, E] rotated by cos, sin [E / 2]."""
        out = x.clone()
        self._c.corral_test_rotate(self._handle, out.data_ptr(), *x.shape, cos.data_ptr(), sin.data_ptr())
        return out

    def _call(self, cache: Cache, q_heads: int) -> _Call:
        _, kv_heads, slots, head_dim = cache.data.shape
        return _Call(
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=1 / math.sqrt(head_dim),
            cache_type=PAIRS if cache.pairs else CACHE_TYPES[cache.kind],
            block_size=cache.block_size,
            slots=slots,
            data=cache.data.data_ptr(),
            scales=None if cache.scales is None else cache.scales.data_ptr(),
        )


def native_library_path() -> Path | None:
    """Where the library was found."""
    loaded = _library()
    return None if loaded is None else Path(loaded._name)
