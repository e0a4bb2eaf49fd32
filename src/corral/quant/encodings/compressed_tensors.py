"""compressed-tensors' layouts, which llm-compressor writes and vLLM reads.

    format             tensor              type            shape
    pack-quantized     weight_packed       int32           [rows, ceil(columns * bits / 32)]
                       weight_shape        int64           [2]
                       weight_zero_point   int32           [ceil(rows * bits / 32), groups], if not symmetric
                       weight_g_idx        int32           [columns], with activation order "group"
    int-quantized      weight              int8            [rows, columns]
                       weight_zero_point   int8            as weight_scale, if not symmetric
    float-quantized    weight              float8_e4m3fn   [rows, columns]
                       input_scale         as below        [1], with static activations
    all                weight_scale        any float       by strategy: tensor [1], channel [rows, 1],
                                                           group [rows, groups], block [row, column blocks]

A weight is (code - zero) * scale with signed codes. In words of 32 bits they are made unsigned by adding
2^(bits - 1) and lie densely (`corral.quant.encodings.bits`), zero points along the rows. The families here
hold unsigned codes and zero points. (compressed-tensors: compressors/, quantization/.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.encodings.bits import pack_words, unpack_words
from corral.quant.encodings.compressed_settings import Scheme
from corral.quant.encodings.fbgemm_fp8 import take_codes
from corral.quant.encodings.named import (
    FLOATS,
    EncodingError,
    constant,
    groups_of,
    optional_scale,
    take,
    take_matrix,
    take_scales,
)
from corral.quant.encodings.order import column_groups, column_order, in_place
from corral.quant.encodings.written import is_symmetric
from corral.quant.float8 import Float8, blocks_of

PARTS = (
    "weight",
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
)
UNUSED = (
    "output_scale",
    "output_zero_point",
    *(f"{cache}_{what}" for cache in ("q", "k", "v", "kv") for what in ("scale", "zero_point")),
)
"""What is stored beside the weights for KV caches, whose type Corral chooses itself."""


def decode(tensors: Mapping[str, Tensor], scheme: Scheme) -> Affine | Float8:
    """The weight [rows, columns] of a module.

    Raises:
        EncodingError: a tensor is missing, or of the wrong type or shape.
    """
    if scheme.kind == "float":
        return _decode_float8(tensors, scheme)
    if "weight_packed" in tensors:
        rows, columns = _shape(tensors)
        words = -(-columns * scheme.bits // 32)
        packed = take(tensors, "weight_packed", (torch.int32,), (rows, words))
        codes, name = unpack_words(packed, scheme.bits, columns), "weight_packed"
    else:
        signed, name = take_matrix(tensors, "weight", (torch.int8,)), "weight"
        codes = _unsigned(signed, scheme.bits, name)
    return _affine(tensors, scheme, codes, name)


def encode_packed(weight: Affine) -> dict[str, Tensor]:
    """The tensors of a module in the format pack-quantized; scales keep their type.

    Raises:
        ValueError: the weight has offsets.
    """
    rows, columns = _without_offsets(weight)
    tensors = {
        "weight_packed": pack_words(in_place(weight.codes, weight.order), weight.bits),
        "weight_scale": weight.scale.contiguous(),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not is_symmetric(weight):
        zeros = _spread_zero(weight).to(torch.uint8)
        tensors["weight_zero_point"] = pack_words(zeros.t().contiguous(), weight.bits).t().contiguous()
    if weight.order is not None:
        tensors["weight_g_idx"] = column_groups(weight.order, columns, weight.group_size)
    return tensors


def encode_int8(weight: Affine) -> dict[str, Tensor]:
    """The tensors of a module in the format int-quantized: 8 bits and one group to a row.

    Raises:
        ValueError: the weight has other bits or groups, or offsets.
    """
    _, columns = _without_offsets(weight)
    if weight.bits != 8 or weight.group_size != columns:
        raise ValueError("int-quantized holds 8 bits with one scale to a row")
    tensors = {"weight": (weight.codes ^ 0x80).view(torch.int8), "weight_scale": weight.scale.contiguous()}
    if not is_symmetric(weight):
        tensors["weight_zero_point"] = (_spread_zero(weight) - 128).to(torch.int8)
    return tensors


def encode_float8(weight: Float8) -> dict[str, Tensor]:
    """The tensors of a module in the format float-quantized; scales keep their type."""
    whole = weight.block == tuple(weight.shape)
    tensors = {
        "weight": weight.codes.contiguous(),
        "weight_scale": (weight.scale.view(1) if whole else weight.scale).contiguous(),
    }
    if weight.activation_scale is not None:
        tensors["input_scale"] = torch.tensor([weight.activation_scale], dtype=weight.scale.dtype)
    return tensors


def _decode_float8(tensors: Mapping[str, Tensor], scheme: Scheme) -> Float8:
    codes = take_codes(tensors, "weight")
    rows, columns = codes.shape
    block = {"tensor": (rows, columns), "channel": (1, columns)}.get(scheme.strategy, scheme.block)
    assert block is not None
    scale = take_scales(tensors, "weight_scale")
    if scheme.strategy == "tensor" and scale.numel() == 1:
        scale = scale.view(1, 1)
    if tuple(scale.shape) != blocks_of(codes.shape, block):
        wanted = list(blocks_of(codes.shape, block))
        raise EncodingError("weight_scale", f"has shape {list(scale.shape)} and must have {wanted}")
    found = optional_scale(tensors, "input_scale") if scheme.activations == "static" else None
    if scheme.activations == "static" and found is None:
        raise EncodingError("input_scale", "is missing, though activations are static")
    return Float8(codes, scale, block, scheme.activations, None, found)


def _affine(tensors: Mapping[str, Tensor], scheme: Scheme, codes: Tensor, name: str) -> Affine:
    """The family of unsigned codes [rows, columns], which came from the tensor `name`."""
    rows, columns = codes.shape
    group_size, groups = groups_of(name, columns, scheme.group_size)
    whole = scheme.strategy == "tensor"
    scale = take_scales(tensors, "weight_scale", (1,) if whole else (rows, groups), FLOATS)
    order = None
    if "weight_g_idx" in tensors:
        g_idx = take(tensors, "weight_g_idx", (torch.int32, torch.int64), (columns,))
        # Where no order was found, the library leaves -1 in the tensor.
        order = None if bool((g_idx == -1).all()) else column_order("weight_g_idx", g_idx, group_size)
    elif scheme.in_activation_order:
        raise EncodingError("weight_g_idx", "is missing, though actorder is 'group'")
    return Affine(
        scheme.bits,
        group_size,
        codes if order is None else codes.index_select(1, order),
        scale.view(1, 1).expand(rows, 1).contiguous() if whole else scale,
        _zero(tensors, scheme, rows, groups),
        order=order,
    )


def _zero(tensors: Mapping[str, Tensor], scheme: Scheme, rows: int, groups: int) -> int | Tensor:
    """Unsigned zero points: one, or uint8 [rows, groups]."""
    bits = scheme.bits
    if scheme.symmetric:
        return 1 << (bits - 1)
    name = "weight_zero_point"
    if name in tensors and tensors[name].dtype == torch.int32:
        words = take(tensors, name, (torch.int32,), (-(-rows * bits // 32), groups))
        return constant(unpack_words(words.t(), bits, rows).t().contiguous())
    whole = scheme.strategy == "tensor"
    signed = take(tensors, name, (torch.int8, torch.int32), (1,) if whole else (rows, groups))
    zeros = _unsigned(signed, bits, name)
    return int(zeros) if whole else constant(zeros)


def _shape(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    shape = take(tensors, "weight_shape", (torch.int64, torch.int32), (2,)).tolist()
    if min(shape) < 1:
        raise EncodingError("weight_shape", f"holds {shape}, which is no shape")
    return int(shape[0]), int(shape[1])


def _unsigned(signed: Tensor, bits: int, name: str) -> Tensor:
    """Signed codes int8 as unsigned ones of some bits, uint8."""
    middle = 1 << (bits - 1)
    if bits == 8:
        return signed.view(torch.uint8) ^ 0x80
    if int(signed.min()) < -middle or int(signed.max()) >= middle:
        raise EncodingError(name, f"holds integers of more than {bits} bits")
    return (signed + middle).to(torch.uint8)


def _spread_zero(weight: Affine) -> Tensor:
    """Zero points int32 [rows, groups]."""
    if isinstance(weight.zero, Tensor):
        return weight.zero.int()
    return torch.full(weight.scale.shape, weight.zero, dtype=torch.int32)


def _without_offsets(weight: Affine) -> tuple[int, int]:
    highest = (1 << weight.bits) - 1
    zero = _spread_zero(weight)
    if weight.offset is not None or int(zero.min()) < 0 or int(zero.max()) > highest:
        raise ValueError(f"compressed-tensors holds no offsets, and zero points from 0 to {highest}")
    return weight.shape[0], weight.shape[1]
