"""GPTQ's layout: 2, 3, 4 or 8 bits, packed along the input features.

    tensor     type      shape
    qweight    int32     [columns * bits / 32, rows]
    qzeros     int32     [groups, rows * bits / 32]
    scales     float16   [groups, rows]
    g_idx      int32     [columns], the group of each column

Codes lie densely in the words, the first in the lowest bits (`corral.quant.encodings.bits`). A weight is
(code - zero) * scale, with zero and scale of the column's group. With `desc_act` groups are formed of columns
in the order of their activations, and `g_idx` does not rise.

Version 1 stores zero - 1, version 2 zero. What a stored 1...1 of version 1 means is told by who wrote it:
AutoGPTQ and what follows it read each field by itself, (field + 1) modulo 2^bits; GPTQModel adds 1 to all
fields of a word in one addition, whose carries undo the borrows of its writer, except for 3 bits, whose
fields cross words (AutoGPTQ: auto_gptq/nn_modules/qlinear/; GPTQModel: gptqmodel/utils/model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from corral.errors import ConfigError
from corral.quant.affine import Affine
from corral.quant.encodings.bits import pack_words, unpack_words
from corral.quant.encodings.named import (
    FLOATS,
    EncodingError,
    constant,
    groups_of,
    take,
    take_matrix,
    take_scales,
)
from corral.quant.encodings.order import column_groups, column_order, in_place
from corral.quant.encodings.settings import Fields
from corral.quant.encodings.written import half_scales, is_symmetric

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)

Zeros = Literal["as they are", "less one", "less one in words"]

_WITHOUT_EFFECT = (
    "quant_method method sym damp_percent damp_auto_increment static_groups true_sequential "
    "model_name_or_path model_file_base_name act_group_aware tokenizer dataset batch_size pad_token_id "
    "use_cuda_fp16 model_seqlen block_name_to_quantize module_name_preceding_first_block max_input_length "
    "disable_exllama use_exllama exllama_config cache_block_outputs modules_in_block_to_quantize backend "
    "lm_head meta mse parallel_packing device offload_to_disk offload_to_disk_path pack_impl gptaq foem "
    "hessian fallback"
)


@dataclass(frozen=True)
class GptqSettings:
    """Bits, group size (None: all columns), whether groups follow activations, how zero points are stored."""

    bits: int
    group_size: int | None
    desc_act: bool = False
    zeros: Zeros = "less one"
    not_converted: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> GptqSettings:
        """Reads a `quantization_config`, or an old quantize_config.json.

        Raises:
            ConfigError: bits or a layout that Corral does not read.
        """
        if fields.value("is_marlin_format"):
            raise ConfigError(f"{fields.where}.is_marlin_format is true: a layout for one CUDA kernel")
        version = fields.choice("checkpoint_format", "format", among=("gptq", "gptq_v2"), default="gptq")
        fields.refuse("pack_dtype", harmless=("int32",))
        _check_overrides(fields)
        zeros: Zeros = "as they are"
        if version == "gptq":
            zeros = "less one in words" if _by_gptqmodel(fields.value("meta")) else "less one"
        settings = cls(
            fields.choice("bits", "w_bit", among=BITS),
            fields.group_size("group_size", "q_group_size"),
            fields.flag("desc_act", default=False),
            zeros,
            fields.names("modules_to_not_convert"),
        )
        fields.close(_WITHOUT_EFFECT)
        return settings

    def to_hf(self) -> dict[str, object]:
        """The `quantization_config` of symmetric weights, which AutoGPTQ, transformers and vLLM read."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": -1 if self.group_size is None else self.group_size,
            "desc_act": self.desc_act,
            "sym": True,
            "checkpoint_format": "gptq_v2" if self.zeros == "as they are" else "gptq",
            "modules_to_not_convert": list(self.not_converted) or None,
        }


def decode(tensors: Mapping[str, Tensor], settings: GptqSettings) -> Affine:
    """The weight [rows, columns] of a module; with activation order its codes lie group by group.

    Raises:
        EncodingError: a tensor is missing, or of the wrong type or shape.
    """
    bits = settings.bits
    packed = take_matrix(tensors, "qweight", (torch.int32,))
    rows, (columns, over) = packed.shape[1], divmod(packed.shape[0] * 32, bits)
    if over or rows * bits % 32:
        raise EncodingError(
            "qweight", f"has shape {list(packed.shape)}, which does not hold whole words of {bits} bits"
        )
    group_size, groups = groups_of("qweight", columns, settings.group_size)
    scales = take_scales(tensors, "scales", (groups, rows), FLOATS)
    words = take(tensors, "qzeros", (torch.int32,), (groups, rows * bits // 32))
    order = _order(tensors, settings, columns, group_size)
    codes = unpack_words(packed.t(), bits, columns)
    return Affine(
        bits,
        group_size,
        codes if order is None else codes.index_select(1, order),
        scales.t().contiguous(),
        constant(_zeros(words, settings, rows).t().contiguous()),
        order=order,
    )


def encode(weight: Affine, version: Literal[1, 2] = 1) -> dict[str, Tensor]:
    """The tensors of a module. Only symmetric weights are written, which all readers of version 1 agree on.

    Raises:
        ValueError: the weight is not symmetric, has offsets, bits that GPTQ does not know, scales that
            float16 does not hold, or rows or columns that fill no whole words.
    """
    rows, columns = weight.shape
    if weight.bits not in BITS or weight.offset is not None or not is_symmetric(weight):
        raise ValueError("GPTQ is written symmetric, with 2, 3, 4 or 8 bits and without offsets")
    if rows % 32 or columns % 32:
        raise ValueError(f"GPTQ holds multiples of 32 rows and columns, not {rows} and {columns}")
    zeros = torch.full((columns // weight.group_size, rows), (1 << (weight.bits - 1)) - (version == 1))
    codes = in_place(weight.codes, weight.order)
    return {
        "qweight": pack_words(codes, weight.bits).t().contiguous(),
        "qzeros": pack_words(zeros.to(torch.uint8), weight.bits),
        "scales": half_scales(weight.scale).t().contiguous(),
        "g_idx": column_groups(weight.order, columns, weight.group_size),
    }


def _order(
    tensors: Mapping[str, Tensor], settings: GptqSettings, columns: int, group_size: int
) -> Tensor | None:
    if "g_idx" not in tensors:
        if settings.desc_act:
            raise EncodingError("g_idx", "is missing, without which desc_act leaves groups unknown")
        return None
    groups = take(tensors, "g_idx", (torch.int32, torch.int64), (columns,))
    return column_order("g_idx", groups, group_size)


def _zeros(words: Tensor, settings: GptqSettings, rows: int) -> Tensor:
    """Zero points uint8 [groups, rows] from their words."""
    bits = settings.bits
    if settings.zeros == "less one in words" and bits != 3:
        one_each = sum(1 << shift for shift in range(0, 32, bits))
        words = (words.long() + one_each).to(torch.int32)  # modulo 2^32
        return unpack_words(words, bits, rows)
    zeros = unpack_words(words, bits, rows)
    return zeros if settings.zeros == "as they are" else (zeros + 1) & ((1 << bits) - 1)


def _by_gptqmodel(meta: Any) -> bool:
    """Whether GPTQModel wrote the file: `meta.quantizer` is "name:version", or a list of them."""
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    return any(str(name).lower().startswith("gptqmodel") for name in _listed(quantizer))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_overrides(fields: Fields) -> None:
    """GPTQModel's `dynamic` gives modules settings of their own; it is read where it leaves modules out."""
    for pattern in fields.objects("dynamic"):
        if not pattern.startswith("-:"):
            raise ConfigError(
                f"{fields.where}.dynamic gives {pattern!r} settings of its own, which Corral does not read"
            )
