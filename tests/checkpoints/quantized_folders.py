"""Small random models in Hugging Face folders, quantized in every format that is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from corral.model.llama import Llama
from corral.quant import FP4, NF4, Affine, Codebook, Float8
from corral.quant.encodings import awq, bitsandbytes, compressed_tensors, gptq
from corral.quant.encodings.awq import AwqSettings
from corral.quant.encodings.bitsandbytes import BitsAndBytesSettings
from corral.quant.encodings.compressed_settings import CompressedTensorsSettings, Scheme
from corral.quant.encodings.gptq import GptqSettings
from tests.random_models import SMALL, random_model

Family = Affine | Codebook | Float8
Config = dict[str, object]


@dataclass(frozen=True)
class Format:
    """How to quantize a matrix, how its tensors are named, and what config.json says."""

    quantize: Callable[[Tensor], Family]
    encode: Callable[[Family], Mapping[str, Tensor]]
    config: Config


def _int4(weight: Tensor) -> Affine:
    return Affine.quantize(weight, 4, 32)


def _int4_with_zeros(weight: Tensor) -> Affine:
    symmetric = _int4(weight)
    generator = torch.Generator().manual_seed(weight.shape[1])
    shape = symmetric.scale.shape
    zeros = torch.randint(6, 11, shape, generator=generator, dtype=torch.uint8)
    return Affine(4, 32, symmetric.codes, symmetric.scale, zeros)


def _in_activation_order(bits: int) -> Callable[[Tensor], Affine]:
    def quantize(weight: Tensor) -> Affine:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(bits))
        made = Affine.quantize(weight[:, order], bits, 32)
        return Affine(bits, 32, made.codes, made.scale, made.zero, order=order)

    return quantize


def _compressed(scheme: Scheme) -> Config:
    return CompressedTensorsSettings(((("Linear",), scheme),), ("lm_head",)).to_hf()


def _float8(block: tuple[int, int] | None) -> Callable[[Tensor], Float8]:
    return lambda weight: Float8.quantize(weight, (1, weight.shape[1]) if block == (1, 0) else block)


def _fp8(weight: Family) -> dict[str, Tensor]:
    assert isinstance(weight, Float8)
    return {"weight": weight.codes, "weight_scale_inv": weight.scale}


def _fbgemm(weight: Family) -> dict[str, Tensor]:
    assert isinstance(weight, Float8)
    return {"weight": weight.codes, "weight_scale": weight.scale}


def _bnb_int8(weight: Family) -> dict[str, Tensor]:
    assert isinstance(weight, Affine)
    signed = (weight.codes ^ 0x80).view(torch.int8)
    return {"weight": signed, "SCB": weight.scale[:, 0].float() * 127, "weight_format": torch.tensor(0)}


def _typed(
    encode: Callable[..., Mapping[str, Tensor]], *args: object
) -> Callable[[Family], Mapping[str, Tensor]]:
    return lambda weight: encode(weight, *args)


_W4 = Scheme(4, "int", "group", True, 32)
_FBGEMM: Config = {
    "quant_method": "fbgemm_fp8",
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": ["lm_head"],
}
FORMATS: dict[str, Format] = {
    "awq": Format(_int4_with_zeros, _typed(awq.encode), AwqSettings(32).to_hf()),
    "gptq 4 bits": Format(_int4, _typed(gptq.encode), GptqSettings(4, 32).to_hf()),
    "gptq 3 bits, version 2": Format(
        lambda w: Affine.quantize(w, 3, 32),
        _typed(gptq.encode, 2),
        GptqSettings(3, 32, zeros="as they are").to_hf(),
    ),
    "gptq 8 bits, activation order": Format(
        _in_activation_order(8), _typed(gptq.encode), GptqSettings(8, 32, True).to_hf()
    ),
    "pack-quantized": Format(_int4, _typed(compressed_tensors.encode_packed), _compressed(_W4)),
    "pack-quantized with zeros": Format(
        _int4_with_zeros,
        _typed(compressed_tensors.encode_packed),
        _compressed(Scheme(4, "int", "group", False, 32)),
    ),
    "int-quantized": Format(
        lambda w: Affine.quantize(w, 8, w.shape[1]),
        _typed(compressed_tensors.encode_int8),
        _compressed(Scheme(8, "int", "channel", activations="token")),
    ),
    "float-quantized, channel": Format(
        _float8((1, 0)),
        _typed(compressed_tensors.encode_float8),
        _compressed(Scheme(8, "float", "channel", activations="token")),
    ),
    "float-quantized, block": Format(
        _float8((16, 32)),
        _typed(compressed_tensors.encode_float8),
        _compressed(Scheme(8, "float", "block", block=(16, 32), activations="group")),
    ),
    "fbgemm_fp8": Format(_float8((1, 0)), _fbgemm, _FBGEMM),
    "fp8": Format(
        _float8((128, 128)), _fp8, {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
    ),
    "nf4": Format(
        lambda w: Codebook.quantize(w, 32, NF4),
        _typed(bitsandbytes.encode, torch.float32),
        BitsAndBytesSettings().to_hf(),
    ),
    "fp4": Format(
        lambda w: Codebook.quantize(w, 32, FP4),
        _typed(bitsandbytes.encode, torch.float32),
        BitsAndBytesSettings().to_hf("fp4"),
    ),
    "LLM.int8": Format(
        lambda w: Affine.quantize(w, 8, w.shape[1]),
        _bnb_int8,
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
}


def is_quantized(name: str) -> bool:
    """Whether a tensor is in the format: the layers' matrices are, but for one that is mixed in."""
    return ".layers." in name and "norm" not in name and name != "model.layers.1.self_attn.o_proj.weight"


def write_quantized(folder: Path, kind: Format, shards: int = 1) -> Llama:
    """A folder of a random model in a format; gives the model with the weights that the format stands for."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tensors = random_model(SMALL), {}
    state = model.state_dict()
    for name, tensor in state.items():
        if is_quantized(name):
            weight = kind.quantize(tensor)
            state[name] = weight.dequantize()
            module = name.removesuffix("weight")
            tensors.update({module + part: t.contiguous() for part, t in kind.encode(weight).items()})
        else:
            tensors[name] = tensor.clone()
    model.load_state_dict(state)
    config = {**SMALL.to_hf(), "quantization_config": kind.config}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, tensors, shards)
    return model


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1) -> None:
    """Tensors in one file, or dealt out to several, so that those of one module lie apart."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        part = dict(list(tensors.items())[i::shards])
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
