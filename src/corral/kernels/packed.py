"""Matrices as the native kernels read them, made from every form that weights are kept in.

    weight                       packed as
    float32, float64             f32
    bfloat16                     bf16
    float16                      bf16 where that loses nothing (models trained in bfloat16), else f32
    Affine of at most 4 bits     u4
    Affine of 5 to 8 bits        u8
    Codebook                     lut4: its levels are rounded to bytes, unless they are integers already
    Float8                       bf16: unpacked, each weight rounded once
    Affine with an `order`       bf16: unpacked, each weight rounded once

What is unpacked runs with the weights that the checkpoint's makers measured, at the speed of bfloat16. No
layout holds either: an 8-bit float is finer near zero than any integer of its group, and with activation
order each column has a group of its own. 8-bit integers in groups of 32 would take half the memory, but would
be up to a 250th of a group's largest weight off; bfloat16 is up to a 500th of the weight itself off.

Scales keep their type; bfloat16 ones become float32. A zero point that differs from group to group becomes an
offset. Groups of 48, 80, ... columns become groups of 16; a group size that 16 does not divide, which no
kernel reads, makes the matrix f32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.kernels.layout import LANES, Codes, Layout, Scales
from corral.kernels.memory import ALIGNMENT, Memory
from corral.quant import Affine, Codebook, Float8, Weight

_AT_ONCE = 1 << 19  # weights: what is made of so many stays in the processor's cache
_ZERO_LEVEL = 128
_NEAR = 512  # factors that are tried for the levels of a codebook


class PackedMatrix:
    """A packed matrix [rows, columns]: its layout and its bytes, wherever they lie.

    Attributes:
        layout: shape and kind.
        data: uint8 [layout.num_bytes], at a multiple of 64 bytes; from `Memory` or of a mapped file.
        struct: what the native library takes. It points to `data`: keep this object while it is in use.
    """

    def __init__(self, layout: Layout, data: NDArray[np.uint8]) -> None:
        assert len(data) == layout.num_bytes
        assert data.ctypes.data % ALIGNMENT == 0
        self.layout, self.data = layout, data
        self.struct = layout.struct(data.ctypes.data)

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, columns]"""
        return self.layout.rows, self.layout.columns

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, scales and padding."""
        return self.layout.num_bytes

    @property
    def is_quantized(self) -> bool:
        """Whether weights are codes with scales."""
        return self.layout.is_quantized

    @property
    def is_float32(self) -> bool:
        """Whether weights are float32."""
        return self.layout.codes is Codes.F32

    def unpack(self) -> Weight:
        """The weights as they were packed: float32, bfloat16, `Affine` (4 or 8 bits) or `Codebook`."""
        layout = self.layout
        rows, columns = self.shape
        if not layout.is_quantized:
            item = np.uint32 if self.is_float32 else np.uint16
            values = torch.from_numpy(self._codes(item)[:rows, :columns].copy())
            return values.view(torch.float32 if self.is_float32 else torch.bfloat16)
        codes = torch.from_numpy(self._codes(np.uint8)[:rows, :columns].copy())
        whole = layout.group == layout.padded_columns
        group = columns if whole else layout.group
        scale = self._floats(layout.scales_at)[:, : columns // group]
        if layout.codes is Codes.LUT4:
            levels = torch.tensor(list(layout.levels), dtype=torch.float32) - layout.zero
            return Codebook(levels, group, codes, scale)
        offset = self._floats(layout.offsets_at)[:, : columns // group] if layout.has_offsets else None
        bits = 8 if layout.codes is Codes.U8 else 4
        return Affine(bits, group, codes, scale, layout.zero, offset)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [rows, columns], in the order of operations of `Affine` and `Codebook`."""
        weight = self.unpack()
        return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantize(dtype)

    def _codes(self, item: type[Any]) -> NDArray[Any]:
        """Codes or floats [padded rows, padded columns]."""
        columns = self.layout.padded_columns
        lanes = _lanes(self.layout, _blocks(self.layout, self.data), 0, self.layout.blocks)
        words = lanes.transpose(0, 2, 1).reshape(self.layout.blocks * LANES, -1)
        if self.layout.codes in (Codes.U4, Codes.LUT4):
            pairs = np.stack((words & 0x0F0F0F0F, words >> 4 & 0x0F0F0F0F), axis=2)
            return pairs.reshape(len(words), -1).view(np.uint8)
        codes: NDArray[Any] = np.ascontiguousarray(words).view(item)
        return codes.reshape(-1, columns)

    def _floats(self, at: int) -> Tensor:
        """Scales or offsets [rows, groups]."""
        lanes = _scale_lanes(self.layout, _blocks(self.layout, self.data), at)
        by_row = lanes.transpose(0, 2, 1).reshape(-1, self.layout.groups)
        return torch.from_numpy(by_row[: self.layout.rows].copy())


def pack(weight: Weight, memory: Memory | None = None, *, half_scales: bool = False) -> PackedMatrix:
    """Packs one matrix [rows, columns]; see `pack_rows`."""
    return pack_rows([weight], memory, half_scales=half_scales)


def pack_rows(
    weights: Sequence[Weight], memory: Memory | None = None, *, half_scales: bool = False
) -> PackedMatrix:
    """Packs the rows of some matrices, one below the other, as one matrix. No large copy is made of them.

    `memory` is where it is put, best the same for all matrices of a model; by default memory of its own.
    `half_scales` rounds float32 scales and offsets to float16, by 2^-11 of themselves at most: GGUF's Q4_K
    takes 5 bits for each weight then instead of 6, and is no longer exact.

    Raises:
        ValueError: `can_join` says no.
    """
    parts = [_prepare(weight, half_scales) for weight in weights]
    if not _alike(parts):
        raise ValueError("matrices of different kinds, columns or groups cannot be packed as one")
    layout = replace(parts[0].layout, rows=sum(part.layout.rows for part in parts))
    data = (memory or Memory(0)).take(layout.num_bytes)
    blocks = _blocks(layout, data)
    step = max(1, _AT_ONCE // (LANES * layout.padded_columns))
    for first in range(0, layout.blocks, step):
        last = min(layout.blocks, first + step)
        _fill(layout, blocks, first, last, _take(parts, first * LANES, last * LANES))
    return PackedMatrix(layout, data)


def can_join(weights: Sequence[Weight], *, half_scales: bool = False) -> bool:
    """Whether `pack_rows` can pack these as one: same columns, codes, groups, zero point and scales."""
    return _alike([_prepare(weight, half_scales) for weight in weights])


def quantized_head(weight: Weight) -> Weight:
    """The form in which a model whose other matrices are quantized keeps its head or its table of embeddings.

    What is quantized stays as it is. The rest becomes 8 bits in groups of 32 (of 16 where the columns ask
    for it): one scale for a whole row would cost accuracy.
    """
    if not isinstance(weight, Tensor) or weight.shape[1] % 16:
        return weight
    return Affine.quantize(weight, bits=8, group_size=16 if weight.shape[1] % 32 else 32)


@dataclass(frozen=True)
class _Unpacked:
    """The rows of a weight as bfloat16, made when they are asked for: the whole is never there at once."""

    weight: Affine | Float8

    def __getitem__(self, rows: slice) -> Tensor:
        return self.weight.rows(rows).dequantize(torch.bfloat16)


@dataclass(frozen=True)
class _Part:
    """A weight with its layout: `values` are codes or floats [rows, columns], as the layout wants them but
    not in its order; `scale` and `offset` are [rows, groups], each to be written `repeat` times."""

    layout: Layout
    values: Tensor | _Unpacked
    scale: Tensor | None = None
    offset: Tensor | None = None
    repeat: int = 1


def _prepare(weight: Weight, half_scales: bool) -> _Part:
    if isinstance(weight, Tensor):
        return _prepare_floats(weight)
    if isinstance(weight, Float8) or (isinstance(weight, Affine) and weight.order is not None):
        return _Part(Layout(weight.shape[0], weight.shape[1], Codes.BF16), _Unpacked(weight))
    group, repeat = _packed_group(weight)
    if not group:
        return _prepare_floats(weight.dequantize())
    if isinstance(weight, Codebook):
        codes, (levels, factor) = Codes.LUT4, _byte_levels(tuple(weight.levels.tolist()))
        zero, offset = _ZERO_LEVEL, None
        scale = weight.scale if factor == 1 else weight.scale.float() / factor
    else:
        codes, levels = Codes.U4 if weight.bits <= 4 else Codes.U8, bytes(16)
        scale = weight.scale
        zero, offset = _constant_zero(weight)
    floats = [t for t in (scale, offset) if t is not None]
    kind = Scales.F16 if all(_is_half(t, half_scales) for t in floats) else Scales.F32
    rows, columns = weight.shape
    layout = Layout(rows, columns, codes, kind, offset is not None, group, zero, levels)
    return _Part(layout, weight.codes, scale, offset, repeat)


def _prepare_floats(weight: Tensor) -> _Part:
    rows, columns = weight.shape
    if weight.dtype == torch.float16:
        narrow = weight.bfloat16()
        weight = narrow if torch.equal(narrow.float(), weight.float()) else weight.float()
    if weight.dtype == torch.bfloat16:
        return _Part(Layout(rows, columns, Codes.BF16), weight)
    return _Part(Layout(rows, columns, Codes.F32), weight.float())


def _packed_group(weight: Affine | Codebook) -> tuple[int, int]:
    """The group size in the packed matrix and how many of its groups one becomes; 0 if none can."""
    size, columns = weight.group_size, weight.shape[1]
    if size == columns:
        return -(-columns // 32) * 32, 1
    if size % 32 == 0:
        return size, 1
    return (16, size // 16) if size % 16 == 0 else (0, 0)


def _constant_zero(weight: Affine) -> tuple[int, Tensor | None]:
    """One zero point for all groups, and the offsets that make up for it."""
    if isinstance(weight.zero, int):
        return weight.zero, weight.offset
    first = int(weight.zero[0, 0])
    if 0 <= first <= 255 and bool((weight.zero == first).all()):
        return first, weight.offset
    middle = 1 << (weight.bits - 1)
    offset = weight.scale.float() * (middle - weight.zero.float())
    return middle, offset if weight.offset is None else offset + weight.offset.float()


def _is_half(values: Tensor, rounded: bool) -> bool:
    """Whether scales or offsets are kept as float16: they are, or may be rounded and are in its range."""
    if values.dtype == torch.float16 or not rounded:
        return values.dtype == torch.float16
    sizes = values.abs()
    half = torch.finfo(torch.float16)
    return bool(((sizes <= half.max) & ((sizes >= half.tiny) | (sizes == 0))).all())


def _byte_levels(levels: tuple[float, ...]) -> tuple[bytes, float]:
    """Levels times a factor as bytes around 128, and the factor: of all that use most of the range, the one
    that rounds best."""
    exact = np.array(levels, np.float64)
    largest = max(abs(exact).max(), 1e-30)
    if np.array_equal(exact, exact.round()) and largest <= 127:
        return bytes((exact + _ZERO_LEVEL).astype(np.uint8)), 1.0
    factors = np.linspace(96, 127, _NEAR)[:, None] / largest
    errors = (((factors * exact).round() / factors - exact) ** 2).sum(axis=1)
    factor = float(factors[errors.argmin(), 0])
    return bytes(((exact * factor).round() + _ZERO_LEVEL).astype(np.uint8)), factor


def _alike(parts: Sequence[_Part]) -> bool:
    return len({(replace(part.layout, rows=0), part.repeat) for part in parts}) == 1


def _take(parts: Sequence[_Part], start: int, stop: int) -> _Part:
    """The rows [start, stop) of the parts as they lie one below the other; fewer at the end."""
    found: list[_Part] = []
    for part in parts:
        rows = part.layout.rows
        if start < rows and stop > 0:
            found.append(_rows(part, slice(max(0, start), min(rows, stop))))
        start, stop = start - rows, stop - rows
    if len(found) == 1:
        return found[0]
    joined = (_joined([getattr(p, name) for p in found]) for name in ("values", "scale", "offset"))
    values, scale, offset = joined
    assert values is not None
    return _Part(parts[0].layout, values, scale, offset, parts[0].repeat)


def _rows(part: _Part, rows: slice) -> _Part:
    scale = None if part.scale is None else part.scale[rows]
    offset = None if part.offset is None else part.offset[rows]
    return replace(part, values=part.values[rows], scale=scale, offset=offset)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    return torch.cat(present) if present else None


def _fill(layout: Layout, blocks: NDArray[np.uint8], first: int, last: int, part: _Part) -> None:
    """Writes blocks [first, last) from the part that holds their rows."""
    padded = (last - first) * LANES
    lanes = _lanes(layout, blocks, first, last)
    assert isinstance(part.values, Tensor)
    words = _words(layout, _padded(_as_numpy(part.values), padded, layout.padded_columns, layout.zero))
    lanes[:] = words.reshape(last - first, LANES, -1).transpose(0, 2, 1)
    for values, at in ((part.scale, layout.scales_at), (part.offset, layout.offsets_at)):
        if values is not None:
            floats = values.numpy() if values.dtype == torch.float16 else values.float().numpy()
            floats = floats.astype(layout.scale_type, copy=False)
            if part.repeat > 1:
                floats = floats.repeat(part.repeat, axis=1)
            by_row = _padded(floats, padded, layout.groups, 0).reshape(last - first, LANES, -1)
            _scale_lanes(layout, blocks[first:last], at)[:] = by_row.transpose(0, 2, 1)


def _as_numpy(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu().contiguous()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _padded(values: NDArray[Any], rows: int, columns: int, filling: int) -> NDArray[Any]:
    if values.shape == (rows, columns):
        return values
    padded = np.full((rows, columns), filling, values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def _words(layout: Layout, values: NDArray[Any]) -> NDArray[np.uint32]:
    """Rows of codes or floats as the 32-bit words that the layout gives to a lane."""
    if layout.codes not in (Codes.U4, Codes.LUT4):
        return values.view(np.uint32)
    eight = values.view(np.uint64)  # the codes of columns 8i .. 8i+7, the first in the lowest byte
    return (eight >> np.uint64(28) | eight).astype(np.uint32)  # the upper four shifted into the high nibbles


def _blocks(layout: Layout, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return data.reshape(layout.blocks, layout.block_bytes)


def _lanes(layout: Layout, blocks: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint32]:
    """The codes or floats of some blocks, in place: [blocks, words, 16]."""
    words = {Codes.F32: 1, Codes.BF16: 2, Codes.U8: 4, Codes.U4: 8, Codes.LUT4: 8}[layout.codes]
    words = layout.padded_columns // words
    end = layout.codes_at + words * LANES * 4
    return blocks[first:last, layout.codes_at : end].view(np.uint32).reshape(last - first, words, LANES)


def _scale_lanes(layout: Layout, blocks: NDArray[np.uint8], at: int) -> NDArray[Any]:
    """The scales or offsets of blocks, in place: [blocks, groups, 16]."""
    item = np.dtype(layout.scale_type)
    size = layout.groups * LANES * item.itemsize
    return blocks[:, at : at + size].view(item).reshape(len(blocks), layout.groups, LANES)
