"""Quantized folders that Corral writes are read by transformers, and those of transformers by Corral."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
import transformers
from torch import Tensor

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from tests.checkpoints.quantized_folders import FORMATS, is_quantized, write_quantized
from tests.checkpoints.writers import write_hf
from tests.random_models import SMALL, random_model

TOKENS = torch.arange(3, 40)
LISTS = {
    "compressed-tensors": "ignore",
    "fp8": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
}


def logits(model: Llama) -> Tensor:
    return model.logits(model(TOKENS, torch.arange(len(TOKENS)), PackedCausal([0, len(TOKENS)])))


def opened_by_transformers(folder: Path, **options: Any) -> Any:
    """transformers needs to be told of each module that is not quantized."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    fields = config["quantization_config"]
    fields[LISTS[fields["quant_method"]]] = ["lm_head", "model.layers.1.self_attn.o_proj"]
    file.write_text(json.dumps(config))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


@pytest.mark.parametrize("name", ["pack-quantized", "fp8"])
def test_transformers_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    expected = write_quantized(tmp_path, FORMATS[name])
    model = opened_by_transformers(tmp_path)
    with torch.no_grad():
        theirs = model(TOKENS[None]).logits[0]
    ours = load_model(open_checkpoint(tmp_path), torch.float32)
    assert torch.equal(logits(ours), logits(expected))
    assert torch.allclose(logits(ours), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("pack-quantized", torch.float16),
        ("int-quantized", torch.float16),
        ("float-quantized, channel", torch.float32),
        ("float-quantized, block", torch.float32),
    ],
)
def test_transformers_dequantizes_to_the_same_weights(tmp_path: Path, name: str, scales: torch.dtype) -> None:
    """Where activations are rounded too, logits differ; the weights, in the scales' type there, do not."""
    write_quantized(tmp_path, FORMATS[name])
    options = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = opened_by_transformers(tmp_path, quantization_config=options).state_dict()
    for full, tensor in open_checkpoint(tmp_path).tensors():
        expected = tensor.to(scales).float() if is_quantized(full) else tensor
        assert torch.equal(theirs[full], expected), full


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_transformers_takes_4_bit_weights_as_they_are_written(tmp_path: Path, name: str) -> None:
    write_quantized(tmp_path, FORMATS[name])
    model = opened_by_transformers(tmp_path)
    found = 0
    for full, tensor in open_checkpoint(tmp_path).tensors():
        if is_quantized(full):
            theirs = model.get_parameter(full)
            assert torch.equal(bnb.dequantize_4bit(theirs.data, theirs.quant_state), tensor)
            found += 1
    assert found == 13


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "bfloat16"},
        {"load_in_8bit": True},
    ],
)
def test_what_transformers_quantizes_with_bitsandbytes_is_read(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    config = replace(SMALL, num_key_value_heads=4, intermediate_size=128)  # rows of whole blocks
    write_hf(random_model(config), tmp_path / "plain", 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain",
        quantization_config=transformers.BitsAndBytesConfig(**options),
        dtype=torch.float32,
    )
    model.save_pretrained(tmp_path / "quantized")
    found = 0
    for full, tensor in open_checkpoint(tmp_path / "quantized").tensors():
        theirs = model.get_parameter(full)
        if not is_quantized(full) and "o_proj" not in full:
            assert torch.equal(theirs, tensor)
            continue
        found += 1
        if "load_in_8bit" in options:
            expected = bnb.int8_vectorwise_dequant(theirs.data, theirs.SCB)
            assert torch.allclose(tensor, expected, rtol=2**-22, atol=0)
        else:
            assert torch.equal(bnb.dequantize_4bit(theirs.data, theirs.quant_state), tensor)
    assert found == 14
