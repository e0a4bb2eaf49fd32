"""8-bit floats as two methods store them: `fbgemm_fp8`, and `fp8`.

    method        tensor             type            shape
    both          weight             float8_e4m3fn   [rows, columns]
    fbgemm_fp8    weight_scale       float32         [rows, 1]
    fp8           weight_scale_inv   float32, e8m0   [row blocks, column blocks], or one value
    fp8, older    weight_scale       float32         one value; input_scale with static activations

A weight is code * scale in all of them: `weight_scale_inv` is the inverse of what the weights were multiplied
by. fbgemm_fp8 is what Meta published Llama 3.1 405B in: activations get a scale to each token at run time,
for magnitudes of at most `activation_scale_ub` (transformers: integrations/fbgemm_fp8.py and
finegrained_fp8.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corral.errors import ConfigError
from corral.quant.encodings.named import FLOATS, EncodingError, optional_scale, take_matrix, take_scales
from corral.quant.encodings.settings import Fields
from corral.quant.float8 import Activations, Float8, blocks_of

PARTS = ("weight", "weight_scale", "weight_scale_inv", "activation_scale", "input_scale")
UNUSED = ("input_scale_ub", "k_scale", "v_scale", "kv_scale")
"""What is stored beside the weights for activations and KV caches, whose types Corral chooses itself."""

_SCALES = (*FLOATS, torch.float8_e8m0fnu)


@dataclass(frozen=True)
class Fp8Settings:
    """How weights of 8-bit floats are stored.

    Attributes:
        block: rows and columns that share a scale; None for all of them, or what the scales' shape says.
        activations: as in `Float8`.
        activation_bound: as in `Float8`.
        not_converted: the modules that keep their floats.
    """

    block: tuple[int, int] | None = None
    activations: Activations = "token"
    activation_bound: float | None = None
    not_converted: tuple[str, ...] = ()

    @classmethod
    def read_fbgemm(cls, fields: Fields) -> Fp8Settings:
        """Reads a `quantization_config` whose `quant_method` is "fbgemm_fp8"."""
        bound = fields.number("activation_scale_ub")
        settings = cls(activation_bound=bound, not_converted=fields.names("modules_to_not_convert"))
        fields.close("quant_method")
        return settings

    @classmethod
    def read(cls, fields: Fields) -> Fp8Settings:
        """Reads a `quantization_config` whose `quant_method` is "fp8".

        Raises:
            ConfigError: blocks or activations that make no sense.
        """
        fields.choice("fmt", among=("e4m3", "float8_e4m3fn"), default="e4m3")
        fields.choice("scale_fmt", among=("float", "ue8m0"), default="float")
        scheme = fields.choice("activation_scheme", among=("dynamic", "static"), default="dynamic")
        fields.refuse("expert_dtype", harmless=("fp8",))
        fields.value("modules_to_convert")  # an embedding, which its tensors tell
        block = _block(fields)
        found: Activations = "group" if block else "token"
        left_out = fields.names("modules_to_not_convert", "ignored_layers")
        settings = cls(block, "static" if scheme == "static" else found, None, left_out)
        fields.close("quant_method dequantize kv_cache_scheme")
        return settings

    def to_hf(self) -> dict[str, object]:
        """The `quantization_config` of fbgemm_fp8, which transformers and vLLM read."""
        return {
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": self.activation_bound,
            "modules_to_not_convert": list(self.not_converted) or None,
        }


def decode(tensors: Mapping[str, Tensor], settings: Fp8Settings) -> Float8:
    """The weight [rows, columns] of a module.

    Raises:
        EncodingError: a tensor is missing, or of the wrong type or shape.
    """
    codes = take_codes(tensors, "weight")
    name = "weight_scale_inv" if "weight_scale_inv" in tensors else "weight_scale"
    scale = take_scales(tensors, name, dtypes=_SCALES)
    rows, columns = codes.shape
    if scale.numel() == 1:
        block, scale = settings.block or (rows, columns), scale.view(1, 1)
    else:
        block = settings.block or (1, columns)
        scale = scale.view(-1, 1) if scale.dim() == 1 else scale
    if tuple(scale.shape) != blocks_of(codes.shape, block):
        wanted = list(blocks_of(codes.shape, block))
        raise EncodingError(name, f"has shape {list(scale.shape)} and must have {wanted}")
    static = settings.activations == "static"
    found = optional_scale(tensors, "activation_scale") or optional_scale(tensors, "input_scale")
    if static and found is None:
        raise EncodingError("activation_scale", "is missing, though activation_scheme is 'static'")
    return Float8(
        codes, scale, block, settings.activations, settings.activation_bound, found if static else None
    )


def encode_fbgemm(weight: Float8) -> dict[str, Tensor]:
    """The tensors of a module of fbgemm_fp8.

    Raises:
        ValueError: the weight has other than a scale to each row.
    """
    if weight.block != (1, weight.shape[1]):
        raise ValueError("fbgemm_fp8 holds a scale to each row")
    return {"weight": weight.codes.contiguous(), "weight_scale": weight.scale.float().contiguous()}


def take_codes(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A matrix of 8-bit floats.

    Raises:
        EncodingError: it is none, or holds a NaN.
    """
    codes = take_matrix(tensors, name, (torch.float8_e4m3fn,))
    if bool(((codes.view(torch.uint8) & 0x7F) == 0x7F).any()):
        raise EncodingError(name, "holds values that are not finite")
    return codes


def _block(fields: Fields) -> tuple[int, int] | None:
    sizes = fields.value("weight_block_size")
    if sizes is None:
        return None
    if isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(n, int) and n > 0 for n in sizes):
        return sizes[0], sizes[1]
    raise ConfigError(
        f"{fields.where}.weight_block_size is {sizes!r}; it must be the rows and columns of a block"
    )
