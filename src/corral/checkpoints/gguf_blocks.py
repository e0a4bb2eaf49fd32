"""Quantized GGUF blocks as weight families: the same codes, the same scales, nothing rounded.

A row of a quantized tensor is a sequence of blocks of 32 or 256 columns. Where the bytes of a block lie is
told by ggml's ggml-common.h (`block_q4_0` and so on), what they mean by `dequantize_row_*` in ggml-quants.c.

    types               family      group   bits     zero      scales
    Q4_0, Q5_0, Q8_0    Affine      32      4, 5, 8  middle    float16
    Q4_1, Q5_1          Affine      32      4, 5     0         float16, and offsets
    Q4_K, Q5_K          Affine      32      4, 5     0         float32, and offsets
    Q2_K                Affine      16      2        0         float32, and offsets
    Q3_K, Q6_K          Affine      16      3, 6     middle    float32
    IQ4_NL, IQ4_XS      Codebook    32                         float16, float32

A scale of the larger blocks is a float16 times an integer of 4 to 8 bits: float32 holds it exactly. The
remaining types (IQ1 to IQ3, TQ, MXFP4, ...) have values that no family holds as they are. They are
dequantized and rounded to 8 bits in groups of 32, which loses far less than their 1 to 4 bits have lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from corral.quant import Affine, Codebook

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float16] | NDArray[np.float32]

_AT_ONCE = 1 << 14  # groups of 32 columns: what is made of so many stays in the processor's cache
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl


@dataclass(frozen=True)
class _BlockType:
    """How to take blocks [n, bytes] apart.

    `codes` fills uint8 [n, columns of a block]; `scales` gives [n, groups of a block], and offsets or None.
    """

    group_size: int
    codes: Callable[[Bytes, Bytes], None]
    scales: Callable[[Bytes], tuple[Floats, Floats | None]]
    bits: int = 4
    zero: int = 0
    is_codebook: bool = False


def read_blocks(raw: Bytes, kind: GgmlType) -> Affine | Codebook:
    """The weights in rows of blocks [rows, bytes of a row].

    Raises:
        NotImplementedError: neither a family nor the `gguf` package knows the type.
        ValueError: scales or values that are not finite.
    """
    layout = _TYPES.get(kind)
    if layout is None:
        return _rounded(raw, kind)
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, row_bytes = raw.shape
    columns = row_bytes // block_bytes * block_columns
    blocks = raw.reshape(-1, block_bytes)
    codes = np.empty((len(blocks), block_columns), np.uint8)
    step = max(1, _AT_ONCE * 32 // block_columns)
    for start in range(0, len(blocks), step):
        layout.codes(blocks[start : start + step], codes[start : start + step])
    with np.errstate(invalid="ignore"):
        scale, offset = layout.scales(blocks)
    if not np.isfinite(scale).all() or (offset is not None and not np.isfinite(offset).all()):
        raise ValueError("it holds scales that are not finite")
    shaped = torch.from_numpy(codes).view(rows, columns), torch.from_numpy(scale).view(rows, -1)
    if layout.is_codebook:
        return Codebook(torch.tensor(_IQ4_LEVELS, dtype=torch.float32), layout.group_size, *shaped)
    offsets = None if offset is None else torch.from_numpy(offset).view(rows, -1)
    return Affine(layout.bits, layout.group_size, *shaped, layout.zero, offsets)


def _rounded(raw: Bytes, kind: GgmlType) -> Affine:
    """The rule for types that no family holds: dequantized, then 8 bits in groups of 32."""
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    values = np.empty((raw.shape[0], raw.shape[1] // block_bytes * block_columns), np.float32)
    step = max(1, _AT_ONCE * 32 // values.shape[1])
    for start in range(0, len(raw), step):
        values[start : start + step] = gguf.quants.dequantize(raw[start : start + step], kind)
    return Affine.quantize(torch.from_numpy(values), bits=8, group_size=32)


def _fields(blocks: Bytes, *sizes: int) -> list[Bytes]:
    """The fields of blocks, by their numbers of bytes, up to the last one that is wanted."""
    ends = np.cumsum(sizes)
    return [blocks[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    """The float16 [n, 1] at an even byte of each block."""
    return np.ascontiguousarray(blocks.view(np.float16)[:, at // 2, None])


# Codes. Shifts and masks run over contiguous bytes, which numpy does with vectors.


def _two_halves(low: Bytes, codes: Bytes, run: int) -> None:
    """Low nibbles of `run` bytes are `run` columns, their high nibbles the next `run`."""
    low = np.ascontiguousarray(low).reshape(-1, run)
    pairs = codes.reshape(-1, 2, run)
    item = np.complex128  # 16 bytes, moved as one: numpy copies short rows item by item
    pairs.view(item)[:, 0] = (low & 15).view(item)
    pairs.view(item)[:, 1] = (low >> 4).view(item)


def _spread(field: Bytes, codes_shape: tuple[int, ...], bits: int) -> Bytes:
    """Each byte of runs of 32 holds 8 / bits columns, 32 apart: [n, columns] of small integers."""
    field = np.ascontiguousarray(field).reshape(-1, 1, 32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((field >> shifts) & np.uint8((1 << bits) - 1)).reshape(codes_shape)


def _codes_q4_0(blocks: Bytes, codes: Bytes) -> None:
    _two_halves(_fields(blocks, 2, 16)[1], codes, 16)


def _codes_q4_1(blocks: Bytes, codes: Bytes) -> None:
    _two_halves(_fields(blocks, 4, 16)[1], codes, 16)


def _codes_q5(blocks: Bytes, codes: Bytes) -> None:
    high, low = _fields(blocks, blocks.shape[1] - 20, 4, 16)[1:]
    _two_halves(low, codes, 16)
    codes |= np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little") << 4


def _codes_q8_0(blocks: Bytes, codes: Bytes) -> None:
    np.bitwise_xor(np.ascontiguousarray(blocks[:, 2:]), 0x80, out=codes)  # signed to unsigned: 128 more


def _codes_q2_k(blocks: Bytes, codes: Bytes) -> None:
    codes[:] = _spread(_fields(blocks, 16, 64)[1], codes.shape, 2)


def _codes_q3_k(blocks: Bytes, codes: Bytes) -> None:
    high, low = _fields(blocks, 32, 64)
    codes[:] = _spread(low, codes.shape, 2) | _spread(high, codes.shape, 1) << 2


def _codes_q4_k(blocks: Bytes, codes: Bytes) -> None:
    _two_halves(_fields(blocks, 16, 128)[1], codes, 32)


def _codes_q5_k(blocks: Bytes, codes: Bytes) -> None:
    high, low = _fields(blocks, 16, 32, 128)[1:]
    _two_halves(low, codes, 32)
    codes |= _spread(high, codes.shape, 1) << 4


def _codes_q6_k(blocks: Bytes, codes: Bytes) -> None:
    low, high = _fields(blocks, 128, 64)
    _two_halves(low, codes, 64)
    codes |= _spread(high, codes.shape, 2) << 4


def _codes_iq4_xs(blocks: Bytes, codes: Bytes) -> None:
    _two_halves(_fields(blocks, 8, 128)[1], codes, 16)


# Scales and offsets.


def _scale(blocks: Bytes) -> tuple[Floats, None]:
    return _half(blocks, 0), None


def _scale_and_offset(blocks: Bytes) -> tuple[Floats, Floats]:
    return _half(blocks, 0), _half(blocks, 2)


def _scales_q2_k(blocks: Bytes) -> tuple[Floats, Floats]:
    packed = blocks[:, :16]
    scale = _half(blocks, 80).astype(np.float32) * (packed & 15)
    return scale, -(_half(blocks, 82).astype(np.float32) * (packed >> 4))


def _scales_q3_k(blocks: Bytes) -> tuple[Floats, None]:
    """Sixteen scales of 6 bits, less 32: the low four bits in 8 bytes, the high two in 4 (see `_spread`)."""
    low, high = _fields(blocks, 96, 8, 4)[1:]
    six_bits = np.concatenate((low & 15, low >> 4), axis=1)
    six_bits |= np.concatenate([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=1)
    return _half(blocks, 108).astype(np.float32) * (six_bits.astype(np.float32) - 32), None


def _scales_q4_k(blocks: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of 6 bits in 12 bytes:

    bytes 0-3    high two bits of scale 4-7 | scale 0-3
    bytes 4-7    high two bits of minimum 4-7 | minimum 0-3
    bytes 8-11   low four bits of minimum 4-7 | low four bits of scale 4-7
    """
    scales, minima, low = _fields(blocks, 4, 4, 4, 4)[1:]
    scale = np.concatenate((scales & 63, scales >> 2 & 48 | low & 15), axis=1)
    minimum = np.concatenate((minima & 63, minima >> 2 & 48 | low >> 4), axis=1)
    return _half(blocks, 0).astype(np.float32) * scale, -(_half(blocks, 2).astype(np.float32) * minimum)


def _scales_q6_k(blocks: Bytes) -> tuple[Floats, None]:
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _half(blocks, 208).astype(np.float32) * scales, None


def _scales_iq4_xs(blocks: Bytes) -> tuple[Floats, None]:
    """Eight scales of 6 bits, less 32: the low four bits in 4 bytes, the high two in 16 bits."""
    high, low = _fields(blocks, 2, 2, 4)[1:]
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    six_bits = (np.ascontiguousarray(high).view(np.uint16) >> shifts & 3).astype(np.uint8) << 4
    six_bits |= np.stack((low & 15, low >> 4), axis=2).reshape(-1, 8)
    return _half(blocks, 0).astype(np.float32) * (six_bits.astype(np.float32) - 32), None


_TYPES = {
    GgmlType.Q4_0: _BlockType(32, _codes_q4_0, _scale, bits=4, zero=8),
    GgmlType.Q4_1: _BlockType(32, _codes_q4_1, _scale_and_offset, bits=4),
    GgmlType.Q5_0: _BlockType(32, _codes_q5, _scale, bits=5, zero=16),
    GgmlType.Q5_1: _BlockType(32, _codes_q5, _scale_and_offset, bits=5),
    GgmlType.Q8_0: _BlockType(32, _codes_q8_0, _scale, bits=8, zero=128),
    GgmlType.Q2_K: _BlockType(16, _codes_q2_k, _scales_q2_k, bits=2),
    GgmlType.Q3_K: _BlockType(16, _codes_q3_k, _scales_q3_k, bits=3, zero=4),
    GgmlType.Q4_K: _BlockType(32, _codes_q4_k, _scales_q4_k, bits=4),
    GgmlType.Q5_K: _BlockType(32, _codes_q5_k, _scales_q4_k, bits=5),
    GgmlType.Q6_K: _BlockType(16, _codes_q6_k, _scales_q6_k, bits=6, zero=32),
    GgmlType.IQ4_NL: _BlockType(32, _codes_q4_0, _scale, is_codebook=True),
    GgmlType.IQ4_XS: _BlockType(32, _codes_iq4_xs, _scales_iq4_xs, is_codebook=True),
}
LOSSLESS = frozenset(_TYPES)
"""The types whose values a weight family holds exactly."""
