"""Weights as the bytes of a GGUF tensor: F32, F16, BF16, or the blocks of Q8_0, Q4_0 and Q4_1.

`gguf_blocks` reads what is written here; it names the sources of the layouts too. Plain numbers get the codes
that ggml's reference gives them, to the bit (`quantize_row_*_ref` in ggml-quants.c); the `gguf` package does
that too, in two to four times the time. What is quantized already, by whichever algorithm, keeps its codes
and its scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray
from torch import Tensor

from corral.quant import Affine, Weight
from corral.quant.groups import row_slices

FLOATS = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}
BLOCK_TYPES = (GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q4_1)
TYPES = {kind.name.lower(): kind for kind in (*FLOATS, *BLOCK_TYPES)}
"""What a matrix can be written as, by the names that llama.cpp gives."""
BLOCK = 32
"""Columns in a block of any of the quantized types."""

Bytes = NDArray[np.uint8]

_BELOW_HALF = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
_MIDDLE = {GgmlType.Q8_0: 128, GgmlType.Q4_0: 8}  # what the code of zero is, in a weight family


def encoded(weight: Weight, kind: GgmlType) -> Iterator[bytes]:
    """The bytes of a tensor, some rows at a time.

    Raises:
        ValueError: the type does not hold it.
    """
    if not isinstance(weight, Tensor | Affine):
        raise ValueError(f"a {type(weight).__name__} keeps no codes that its blocks hold; dequantize it")
    matrix = weight[None] if isinstance(weight, Tensor) and weight.dim() == 1 else weight
    for part in row_slices(*matrix.shape):
        if isinstance(matrix, Tensor):
            rows = matrix[part]
            raw = _plain(rows, FLOATS[kind]) if kind in FLOATS else quantized_blocks(rows, kind)
        elif kind in BLOCK_TYPES:
            raw = affine_blocks(matrix.rows(part), kind)
        else:
            raise ValueError("the weight is quantized; dequantize it")
        yield raw.tobytes()


def fitting(weight: Weight, kind: GgmlType) -> Weight:
    """The weight itself if its codes can be kept, else its values."""
    if isinstance(weight, Tensor) or (
        isinstance(weight, Affine) and kind in BLOCK_TYPES and why_not(weight, kind) is None
    ):
        return weight
    return weight.dequantize()


def quantized_blocks(values: Tensor, kind: GgmlType) -> Bytes:
    """The nearest codes to a matrix [rows, columns], as blocks [rows, bytes of a row].

    The bytes are those of `gguf.quants.quantize`, except for a block of values so small that its scale has no
    inverse in float32: there its codes are undefined, and those of zero here.

    Raises:
        ValueError: the columns are no multiple of 32, or float16 does not hold a scale or a minimum.
    """
    rows, columns = values.shape
    if columns % BLOCK:
        raise ValueError(f"its {columns} columns are no multiple of the {BLOCK} of a {kind.name} block")
    quantize = {GgmlType.Q8_0: _q8_0, GgmlType.Q4_0: _q4_0, GgmlType.Q4_1: _q4_1}[kind]
    floats, codes = quantize(values.float().reshape(-1, BLOCK))
    halves = floats.half()
    if not torch.isfinite(halves).all():
        raise ValueError(f"it holds values that are not finite, or too large for {kind.name}")
    fields = (_bytes_of(halves), codes.numpy() if kind == GgmlType.Q8_0 else _nibbles(codes.numpy()))
    return np.concatenate(fields, axis=1).reshape(rows, -1)


def affine_blocks(weight: Affine, kind: GgmlType) -> Bytes:
    """Codes and scales that are given, as blocks [rows, bytes of a row]: nothing is chosen anew.

    Groups of more than 32 columns become several blocks with the same scale. Q8_0 and Q4_0 hold
    scale * (code - zero) where code - zero takes 8 or 4 bits. Q4_1 holds scale * code + minimum, where the
    minimum is offset - zero * scale, rounded to float16: with integer zero points that may move all values of
    a group alike, by less than a hundredth of its scale.

    Raises:
        ValueError: the type does not hold the weight; the message says why.
    """
    reason = why_not(weight, kind)
    if reason is not None:
        raise ValueError(reason)
    fields = [_bytes_of(_per_block(weight, weight.scale.half()))]
    if kind == GgmlType.Q4_1:
        minimum = _bytes_of(_per_block(weight, _minimum(weight)))
        fields += [minimum, _nibbles(weight.codes.reshape(-1, BLOCK).numpy())]
    else:
        shift = _MIDDLE[kind] - _zero(weight)[:, :, None]  # what makes the zero point the middle
        moved = weight.codes.reshape(*weight.scale.shape, -1).to(torch.int16) + shift
        centred: Bytes = moved.to(torch.uint8).view(-1, BLOCK).numpy()
        fields.append(np.bitwise_xor(centred, 0x80) if kind == GgmlType.Q8_0 else _nibbles(centred))
    return np.concatenate(fields, axis=1).reshape(weight.shape[0], -1)


def why_not(weight: Affine, kind: GgmlType) -> str | None:
    """Why a block type does not hold a weight; None if it does."""
    if weight.order is not None:
        return f"{kind.name} has no place for the order of its columns"
    if weight.group_size % BLOCK:
        return f"{kind.name} needs groups of a multiple of {BLOCK} columns, not of {weight.group_size}"
    if not _is_half(weight.scale):
        return f"{kind.name} keeps scales in float16, which does not hold those of the weight"
    if kind == GgmlType.Q4_1:
        if int(weight.codes.max()) > 15:
            return f"{kind.name} has codes of 4 bits, the weight of {weight.bits}"
        if not torch.isfinite(_minimum(weight)).all():
            return f"{kind.name} keeps minima in float16, which does not hold those of the weight"
        constant = isinstance(weight.zero, int) and weight.zero == 0
        if constant and weight.offset is not None and not _is_half(weight.offset):
            return f"{kind.name} keeps minima in float16, which does not hold the offsets of the weight"
        return None
    if weight.offset is not None and bool(weight.offset.any()):
        return f"{kind.name} has no place for offsets"
    middle, zero = _MIDDLE[kind], _zero(weight)
    grouped = weight.codes.reshape(*weight.scale.shape, -1)
    lowest, highest = grouped.amin(2) - zero, grouped.amax(2) - zero
    if int(lowest.min()) < -middle or int(highest.max()) >= middle:
        return f"the weight's codes, less their zero points, do not lie between {-middle} and {middle - 1}"
    return None


def _plain(values: Tensor, dtype: torch.dtype) -> Bytes:
    """Values rounded to a type, as bytes.

    Raises:
        ValueError: they are too large for it.
    """
    rounded = values.to(dtype)
    if dtype == torch.float16 and values.dtype != dtype and not torch.isfinite(rounded).all():
        raise ValueError("it holds values that are not finite, or too large for float16")
    return rounded.contiguous().view(torch.uint8).numpy()


def _zero(weight: Affine) -> Tensor:
    """The zero points as int16 [rows, groups]."""
    if isinstance(weight.zero, Tensor):
        return weight.zero.to(torch.int16)
    return torch.full(weight.scale.shape, weight.zero, dtype=torch.int16)


def _minimum(weight: Affine) -> Tensor:
    """What the code 0 stands for: float16 [rows, groups]."""
    minimum = -weight.scale.float() * _zero(weight)
    return (minimum if weight.offset is None else minimum + weight.offset.float()).half()


def _is_half(values: Tensor) -> bool:
    """Whether float16 holds all values as they are, and all are finite."""
    half = values.half()
    return bool(torch.isfinite(half).all()) and torch.equal(half.float(), values.float())


def _per_block(weight: Affine, groups: Tensor) -> Tensor:
    """What belongs to groups [rows, groups], for each block: [blocks, 1]."""
    return groups.repeat_interleave(weight.group_size // BLOCK, dim=1).view(-1, 1)


def _bytes_of(halves: Tensor) -> Bytes:
    """float16 [n, m] as bytes [n, 2 m]."""
    return halves.contiguous().numpy().view(np.uint8)


def _nibbles(codes: Bytes) -> Bytes:
    """Codes [n, 32] of 4 bits, two in a byte: column i low and column i + 16 high."""
    high: Bytes = np.left_shift(codes[:, 16:], 4)
    return codes[:, :16] | high


# ggml's rules. Blocks of values [n, 32] become what float16 will hold (scales [n, 1], or scales and minima
# [n, 2]) and codes, as bytes [n, 32]. The codes are chosen for the scale as it was in float32.


def _q8_0(blocks: Tensor) -> tuple[Tensor, Tensor]:
    scale = blocks.abs().amax(1, keepdim=True) / 127
    steps = blocks * _inverse(scale)
    # Halves go away from zero. What is added, before the fraction is cut off, is a little less than a half:
    # so the largest number below a half stays below one, and the sum rounds a half itself up.
    steps += torch.copysign(_BELOW_HALF, steps)
    return scale, steps.to(torch.int8).view(torch.uint8)


def _q4_0(blocks: Tensor) -> tuple[Tensor, Tensor]:
    lowest, highest = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    largest = torch.where(highest > -lowest, highest, lowest)  # the largest magnitude, with its sign
    (tied,) = (highest == -lowest).squeeze(1).nonzero(as_tuple=True)  # then the first of them
    some = blocks[tied]
    largest[tied] = some.gather(1, some.abs().argmax(1, keepdim=True))
    scale = largest / -8
    return scale, _four_bits((blocks * _inverse(scale)).add_(8.5))


def _q4_1(blocks: Tensor) -> tuple[Tensor, Tensor]:
    lowest, highest = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (highest - lowest) / 15
    steps = ((blocks - lowest) * _inverse(scale)).add_(0.5)
    return torch.cat((scale, lowest), dim=1), _four_bits(steps)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where that is not finite."""
    inverse = 1 / scale
    return torch.where(torch.isfinite(inverse), inverse, 0)


def _four_bits(steps: Tensor) -> Tensor:
    """Non-negative numbers, cut down to whole ones and to 15."""
    return steps.clamp_(max=15).to(torch.uint8)
