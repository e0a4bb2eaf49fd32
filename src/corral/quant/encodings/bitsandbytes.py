"""bitsandbytes' layouts: 4-bit codebooks (nf4, fp4) and 8-bit integers.

    tensor                                 type      shape
    weight                                 uint8     [weights / 2, 1], the first of two in the high bits
    weight.absmax                          float32   [blocks]; uint8 with double quantization
    weight.quant_map                       float32   [16]
    weight.quant_state.bitsandbytes__nf4   uint8     JSON: blocksize, shape, dtype, ... (or __fp4)
    weight.nested_absmax                   float32   [blocks / 256]
    weight.nested_quant_map                float32   [256]

Blocks are runs of the matrix laid out row by row, so that one may begin in a row and end in the next. With
double quantization the scale of block i is  nested_quant_map[absmax[i]] * nested_absmax[i / 256] +
nested_offset,  rounded to float32 after each step. `weight` may have another type of the same bytes
(bnb_4bit_quant_storage).

    weight          int8      [rows, columns]
    SCB             float32   [rows], the largest magnitude of each row: a weight is code * SCB / 127
    weight_format   uint8     0

(bitsandbytes: functional.py, QuantState; nn/modules.py, Linear8bitLt.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.codebook import FP4, NF4, Codebook
from corral.quant.encodings.named import EncodingError, take, take_matrix, take_scales
from corral.quant.encodings.settings import Fields

_STATES = {kind: f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")}
PARTS = (
    "weight",
    "SCB",
    "weight_format",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    *_STATES.values(),
)

_LEVELS = {"nf4": NF4, "fp4": FP4}
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_INT8_STEP = 1 / 127
_WITHOUT_EFFECT = (
    "quant_method load_in_8bit load_in_4bit _load_in_8bit _load_in_4bit llm_int8_threshold "
    "llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight bnb_4bit_use_double_quant "
    "bnb_4bit_compute_dtype bnb_4bit_quant_storage"
)


@dataclass(frozen=True)
class BitsAndBytesSettings:
    """The modules that keep their floats; the tensors tell all else."""

    not_converted: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> BitsAndBytesSettings:
        """Reads a `quantization_config`."""
        fields.choice("bnb_4bit_quant_type", among=tuple(_LEVELS), default="fp4")
        settings = cls(fields.names("llm_int8_skip_modules"))
        fields.close(_WITHOUT_EFFECT)
        return settings

    def to_hf(self, kind: str = "nf4") -> dict[str, object]:
        """The `quantization_config` of 4-bit weights."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(self.not_converted) or None,
        }


def decode(tensors: Mapping[str, Tensor]) -> Codebook | Affine:
    """The weight [rows, columns] of a module.

    4 bits: the group size is the block size, or the largest part of it that divides the columns. 8 bits: one
    group to a row; its scale, SCB / 127, is rounded to float32, which the product of a code with SCB is not
    beforehand in bitsandbytes.

    Raises:
        EncodingError: a tensor is missing, or of the wrong type or shape.
    """
    kinds = [kind for kind, name in _STATES.items() if name in tensors]
    if kinds:
        return _decode_codebook(tensors, kinds[0])
    if "SCB" in tensors or ("weight" in tensors and tensors["weight"].dtype == torch.int8):
        return _decode_int8(tensors)
    raise EncodingError(_STATES["nf4"], "is missing")


def encode(weight: Codebook, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a module, without double quantization; `decode` gives back the same codes and scales.

    `dtype` is that of the weights that were quantized, in which bitsandbytes computes.

    Raises:
        ValueError: other levels than NF4 or FP4, a group size that is no block size of bitsandbytes, or
            scales that are not float32.
    """
    kinds = [k for k, levels in _LEVELS.items() if torch.equal(weight.levels.cpu(), torch.tensor(levels))]
    if not kinds or weight.group_size not in _BLOCKS or weight.scale.dtype != torch.float32:
        raise ValueError(
            "bitsandbytes holds levels of nf4 or fp4 with float32 scales in groups of 32, 64, ... 4096"
        )
    state = {
        "quant_type": kinds[0],
        "blocksize": weight.group_size,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    pairs = weight.codes.cpu().view(-1, 2)
    return {
        "weight": (pairs[:, :1] << 4 | pairs[:, 1:]).contiguous(),
        "weight.absmax": weight.scale.cpu().flatten(),
        "weight.quant_map": weight.levels.cpu(),
        _STATES[kinds[0]]: torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
    }


def _decode_codebook(tensors: Mapping[str, Tensor], kind: str) -> Codebook:
    state = _state(tensors, _STATES[kind])
    (rows, columns), size = state["shape"], state["blocksize"]
    blocks = -(-rows * columns // size)
    packed = take(tensors, "weight", (torch.uint8, torch.bfloat16, torch.float16, torch.float32))
    packed = packed.contiguous().view(torch.uint8).flatten()
    if len(packed) != -(-rows * columns // 2):
        raise EncodingError("weight", f"has {len(packed)} bytes, too few or too many for {rows} x {columns}")
    levels = take_scales(tensors, "weight.quant_map", (16,), (torch.float32,))
    nested = "nested_offset" in state
    absmax = _nested(tensors, state, blocks) if nested else _absmax(tensors, blocks)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).view(-1)[: rows * columns]
    group_size = math.gcd(size, columns)
    # A block covers several groups, and a group lies in one block.
    scale = absmax.repeat_interleave(size // group_size)[: rows * columns // group_size]
    return Codebook(levels.clone(), group_size, codes.view(rows, columns), scale.view(rows, -1).clone())


def _absmax(tensors: Mapping[str, Tensor], blocks: int) -> Tensor:
    return take_scales(tensors, "weight.absmax", (blocks,), (torch.float32,))


def _nested(tensors: Mapping[str, Tensor], state: Mapping[str, Any], blocks: int) -> Tensor:
    size = state["nested_blocksize"]
    codes = take(tensors, "weight.absmax", (torch.uint8,), (blocks,))
    outer = take_scales(tensors, "weight.nested_absmax", (-(-blocks // size),), (torch.float32,))
    table = take_scales(tensors, "weight.nested_quant_map", (256,), (torch.float32,))
    scale = table[codes.int()] * outer.repeat_interleave(size)[:blocks]
    return scale + torch.tensor(state["nested_offset"], dtype=torch.float32)


def _state(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The JSON beside a 4-bit weight, with the fields that are used here checked."""
    raw = bytes(take(tensors, name, (torch.uint8,)).flatten().tolist())
    try:
        state = json.loads(raw)
        rows, columns = state["shape"]
        sizes = [rows, columns, state["blocksize"]]
        if "nested_offset" in state:
            sizes.append(state["nested_blocksize"])
            state["nested_offset"] = float(state["nested_offset"])
    except (ValueError, KeyError, TypeError):
        raise EncodingError(name, "is no JSON with shape and blocksize") from None
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise EncodingError(name, f"holds sizes that are no positive numbers: {sizes}")
    return dict(state)


def _decode_int8(tensors: Mapping[str, Tensor]) -> Affine:
    codes = take_matrix(tensors, "weight", (torch.int8,))
    rows, columns = codes.shape
    scale = take_scales(tensors, "SCB", (rows,), (torch.float32,))
    if "weight_format" in tensors and bool(tensors["weight_format"].any()):
        raise EncodingError("weight_format", "says that rows are not stored one after the other")
    unsigned = codes.view(torch.uint8) ^ 0x80  # signed to unsigned: 128 more
    return Affine(8, columns, unsigned, (scale * _INT8_STEP)[:, None], 128)
