"""The formats that recipes are written in: the tensors of a module, and what config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from corral.quant import Affine, Codebook, Float8
from corral.quant.encodings import awq, bitsandbytes, compressed_tensors, fbgemm_fp8, gptq
from corral.quant.encodings.awq import AwqSettings
from corral.quant.encodings.bitsandbytes import BitsAndBytesSettings
from corral.quant.encodings.compressed_settings import CompressedTensorsSettings, Scheme
from corral.quant.encodings.config import Quantization
from corral.quant.encodings.fbgemm_fp8 import Fp8Settings
from corral.quant.encodings.gptq import GptqSettings
from corral.quantizer.recipe import Recipe

Family = Affine | Codebook | Float8

_HALF = ("awq", "gptq", "gguf")  # whose scales are float16


def plain_dtype(recipe: Recipe, stored: torch.dtype) -> torch.dtype:
    """The type of what is not quantized: float16 where that is what kernels for the format take."""
    return torch.float16 if recipe.format in ("awq", "gptq") else stored


def scale_dtype(recipe: Recipe, stored: torch.dtype) -> torch.dtype:
    """The type of the scales: the format's, or that of the rest, into which readers turn them."""
    return torch.float16 if recipe.format in _HALF else plain_dtype(recipe, stored)


def encode(weight: Family, recipe: Recipe, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a module by their names within it; `dtype` is that of what is not quantized."""
    match weight:
        case Codebook():
            return bitsandbytes.encode(weight, dtype)
        case Float8():
            return fbgemm_fp8.encode_fbgemm(weight) if recipe.format == "fbgemm_fp8" else _float8(weight)
        case Affine():
            if recipe.format == "awq":
                return awq.encode(weight)
            if recipe.format == "gptq":
                return gptq.encode(weight)
            if recipe.activations == "token":
                return compressed_tensors.encode_int8(weight)
            return compressed_tensors.encode_packed(weight)


def quantization_config(recipe: Recipe, left_out: Sequence[str]) -> dict[str, Any]:
    """What config.json says; `left_out` are the modules with matrices that keep their floats.

    A GGUF file says it in its own way: there it is how the parts are kept until the file is written.
    """
    not_converted = tuple(left_out)
    match recipe.format:
        case "awq":
            return AwqSettings(recipe.group_size, not_converted).to_hf()
        case "gptq":
            return GptqSettings(recipe.bits, recipe.group_size, not_converted=not_converted).to_hf()
        case "bitsandbytes":
            return BitsAndBytesSettings(not_converted).to_hf()
        case "fbgemm_fp8":
            return Fp8Settings(activation_bound=recipe.activation_bound, not_converted=not_converted).to_hf()
        case _:
            return CompressedTensorsSettings(((("Linear",), _scheme(recipe)),), not_converted).to_hf()


def decode(module: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Family:
    """The weight of a module from what `encode` gave."""
    return Quantization.read(config).decode(module, tensors)


def _float8(weight: Float8) -> dict[str, Tensor]:
    return compressed_tensors.encode_float8(weight)


def _scheme(recipe: Recipe) -> Scheme:
    if recipe.method == "fp8":
        if recipe.preset == "block":
            return Scheme(8, "float", "block", block=recipe.block, activations="group")
        strategy = "tensor" if recipe.preset == "static" else "channel"
        return Scheme(8, "float", strategy, activations=recipe.activations)  # type: ignore[arg-type]
    return Scheme(
        recipe.bits,
        "int",
        "channel" if recipe.group_size is None else "group",
        recipe.symmetric,
        recipe.group_size,
        activations=recipe.activations,
    )
