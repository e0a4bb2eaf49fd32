"""AutoAWQ's `gemm` layout: 4 bits, packed along the output features.

    tensor     type      shape
    qweight    int32     [columns, rows / 8]
    qzeros     int32     [columns / group_size, rows / 8]
    scales     float16   [columns / group_size, rows]

Eight output features share a word; the nibbles, from the lowest, hold features 0, 2, 4, 6, 1, 3, 5, 7 of the
eight. Zero points are stored as they are: a weight is (code - zero) * scale (AutoAWQ:
awq/modules/linear/gemm.py, awq/utils/packing_utils.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corral.errors import ConfigError
from corral.quant.affine import Affine
from corral.quant.encodings.bits import pack_words, unpack_words
from corral.quant.encodings.named import FLOATS, constant, groups_of, take, take_matrix, take_scales
from corral.quant.encodings.settings import Fields
from corral.quant.encodings.written import half_scales

PARTS = ("qweight", "qzeros", "scales")

_BITS = 4
_FEATURES = (0, 2, 4, 6, 1, 3, 5, 7)  # of the nibbles
_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # of the features
_WITHOUT_EFFECT = (
    "quant_method method zero_point sym desc_act do_fuse fuse_max_seq_len modules_to_fuse exllama_config "
    "backend lm_head meta true_sequential damp_percent act_group_aware dataset tokenizer batch_size "
    "pad_token_id model_seqlen max_input_length cache_block_outputs block_name_to_quantize "
    "module_name_preceding_first_block modules_in_block_to_quantize checkpoint_format"
)


@dataclass(frozen=True)
class AwqSettings:
    """Group size (None: all columns) and the modules that keep their floats."""

    group_size: int | None
    not_converted: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> AwqSettings:
        """Reads a `quantization_config`, or an old quant_config.json.

        Raises:
            ConfigError: another layout than gemm, or other than 4 bits.
        """
        fields.choice("bits", "w_bit", among=(_BITS,))
        version = fields.choice(
            "version", "format", among=("gemm", "gemv", "gemv_fast", "llm-awq"), default="gemm"
        )
        if version != "gemm" or fields.value("backend") == "llm-awq":
            raise ConfigError(
                f"{fields.where}.version is {version!r}, a layout for one CUDA kernel; Corral reads 'gemm', "
                "which AutoAWQ writes by default"
            )
        fields.refuse("pack_dtype", harmless=("int32",))
        fields.refuse("dynamic")
        settings = cls(
            fields.group_size("group_size", "q_group_size"), fields.names("modules_to_not_convert")
        )
        fields.close(_WITHOUT_EFFECT)
        return settings

    def to_hf(self) -> dict[str, object]:
        """The `quantization_config` that AutoAWQ, transformers and vLLM read."""
        return {
            "quant_method": "awq",
            "bits": _BITS,
            "group_size": -1 if self.group_size is None else self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(self.not_converted) or None,
        }


def decode(tensors: Mapping[str, Tensor], settings: AwqSettings) -> Affine:
    """The weight [rows, columns] of a module.

    Raises:
        EncodingError: a tensor is missing, or of the wrong type or shape.
    """
    packed = take_matrix(tensors, "qweight", (torch.int32,))
    columns, rows = packed.shape[0], packed.shape[1] * 8
    group_size, groups = groups_of("qweight", columns, settings.group_size)
    zeros = take(tensors, "qzeros", (torch.int32,), (groups, rows // 8))
    scales = take_scales(tensors, "scales", (groups, rows), FLOATS)
    codes, zero = (_shuffled(unpack_words(words, _BITS, rows), _NIBBLES) for words in (packed, zeros))
    return Affine(
        _BITS, group_size, codes.t().contiguous(), scales.t().contiguous(), constant(zero.t().contiguous())
    )


def encode(weight: Affine) -> dict[str, Tensor]:
    """The tensors of a module; `decode` gives back the same codes, scales and zero points.

    Raises:
        ValueError: the weight has not 4 bits, has offsets or an order, scales that float16 does not hold,
            zero points above 15, or rows that are no multiple of 8.
    """
    if weight.bits != _BITS or weight.offset is not None or weight.order is not None or weight.shape[0] % 8:
        raise ValueError("AWQ holds 4 bits without offsets or activation order, in a multiple of 8 rows")
    zero = weight.zero if isinstance(weight.zero, Tensor) else torch.full(weight.scale.shape, weight.zero)
    if int(zero.min()) < 0 or int(zero.max()) > 15:
        raise ValueError("AWQ holds zero points from 0 to 15")
    packed = [pack_words(_shuffled(t.t().to(torch.uint8), _FEATURES), _BITS) for t in (weight.codes, zero)]
    return {
        "qweight": packed[0],
        "qzeros": packed[1],
        "scales": half_scales(weight.scale).t().contiguous(),
    }


def _shuffled(codes: Tensor, order: tuple[int, ...]) -> Tensor:
    """Columns in another order within each eight."""
    return codes.reshape(len(codes), -1, 8)[:, :, list(order)].reshape(len(codes), -1)
