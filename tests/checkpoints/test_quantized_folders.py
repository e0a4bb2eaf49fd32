"""Quantized Hugging Face folders give the network that their dequantized weights give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from corral.checkpoints.hf_writer import _cast
from corral.checkpoints.load import checked, load_model
from corral.checkpoints.report import silent
from corral.checkpoints.source import open_checkpoint
from corral.errors import CheckpointError, ConfigError
from corral.kernels.packed import pack
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from corral.quant import Affine, Float8
from tests.checkpoints.quantized_folders import FORMATS, is_quantized, write_quantized, write_shards
from tests.random_models import SMALL

UP = "model.layers.0.mlp.up_proj"
TOKENS = torch.arange(3, 40)


def logits(model: Llama) -> Tensor:
    return model.logits(model(TOKENS, torch.arange(len(TOKENS)), PackedCausal([0, len(TOKENS)])))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_gives_the_network_of_its_dequantized_weights(
    tmp_path: Path, name: str, shards: int
) -> None:
    expected = write_quantized(tmp_path, FORMATS[name], shards)
    checkpoint = open_checkpoint(tmp_path)
    model = load_model(checkpoint, torch.float32)
    # SCB is rounded twice on its way from a scale and back.
    tolerance = 1e-4 if name == "LLM.int8" else 0.0
    assert torch.allclose(logits(model), logits(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_families_that_pack_to_what_they_stand_for(tmp_path: Path, name: str) -> None:
    expected = write_quantized(tmp_path, FORMATS[name]).state_dict()
    checkpoint = open_checkpoint(tmp_path)
    network = Llama.on_meta(SMALL)
    for full, weight in checked(checkpoint, network, checkpoint.weights()):
        assert is_quantized(full) == (not isinstance(weight, Tensor))
        if isinstance(weight, Tensor):
            continue
        values, packed = weight.dequantize(), pack(weight)
        assert torch.allclose(values, expected[full], rtol=1e-6, atol=0)
        unpacked = isinstance(weight, Float8) or (isinstance(weight, Affine) and weight.order is not None)
        if unpacked:
            assert torch.equal(packed.dequantize(), values.bfloat16().float())
        elif isinstance(weight, Affine):
            assert torch.equal(packed.dequantize(), values)
        else:  # levels in bytes
            assert (packed.dequantize() - values).abs().max() <= 0.005 * weight.scale.max()
        assert packed.is_quantized == (not unpacked)


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "part", "value", "message"),
    [
        ("awq", "scales", None, "scales is missing"),
        ("awq", "qweight", None, "qweight is missing"),
        ("awq", "qzeros", torch.zeros(1, 12, dtype=torch.int32), r"qzeros has shape \[1, 12\] and must have"),
        ("gptq 4 bits", "qzeros", None, "qzeros is missing"),
        ("gptq 8 bits, activation order", "g_idx", None, "g_idx is missing"),
        ("pack-quantized", "weight_scale", torch.full((96, 2), torch.nan), "weight_scale holds values"),
        ("float-quantized, channel", "weight_scale", None, "weight_scale is missing"),
        ("fbgemm_fp8", "weight", torch.zeros(96, 64, dtype=torch.int8), "weight is int8 and must be"),
        ("nf4", "weight.absmax", None, r"weight\.absmax is missing"),
        ("LLM.int8", "SCB", None, "SCB is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(
    tmp_path: Path, name: str, part: str, value: Tensor | None, message: str
) -> None:
    write_quantized(tmp_path, FORMATS[name])
    full = f"{UP}.{part}"
    damaged(tmp_path, lambda t: t.pop(full) if value is None else t.update({full: value}))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {UP}\.{message}"):
        load_model(open_checkpoint(tmp_path), torch.float32)


def test_a_module_that_the_settings_leave_out_is_not_quantized(tmp_path: Path) -> None:
    write_quantized(tmp_path, FORMATS["pack-quantized"])
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["ignore"].append("re:.*up_proj")
    file.write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"{UP}\.weight_\w+ is there, though .* leaves this module out"
    ):
        load_model(open_checkpoint(tmp_path), torch.float32)


def test_settings_that_are_not_read_are_named_when_the_folder_is_opened(tmp_path: Path) -> None:
    write_quantized(tmp_path, FORMATS["awq"])
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["version"] = "gemv"
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantization_config\.version is 'gemv'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "fields"),
    [
        ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
        (
            "gptq 4 bits",
            "quantize_config.json",
            {"bits": 4, "group_size": 32, "desc_act": False, "sym": True},
        ),
    ],
)
def test_older_files_of_settings_are_read(tmp_path: Path, name: str, file: str, fields: object) -> None:
    expected = write_quantized(tmp_path, FORMATS[name])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / file).write_text(json.dumps(fields))
    checkpoint = open_checkpoint(tmp_path)
    assert tmp_path / file in checkpoint.files
    assert torch.equal(logits(load_model(checkpoint, torch.float32)), logits(expected))


def test_biases_of_zeros_that_a_format_adds_are_left_out_and_others_are_not(tmp_path: Path) -> None:
    expected = write_quantized(tmp_path, FORMATS["gptq 4 bits"])
    damaged(tmp_path, lambda t: t.update({f"{UP}.bias": torch.zeros(96, dtype=torch.float16)}))
    assert torch.equal(logits(load_model(open_checkpoint(tmp_path), torch.float32)), logits(expected))
    damaged(tmp_path, lambda t: t.update({f"{UP}.bias": torch.ones(96, dtype=torch.float16)}))
    with pytest.raises(CheckpointError, match=rf"{UP}\.bias, which this model has no place for"):
        load_model(open_checkpoint(tmp_path), torch.float32)


def test_scales_of_kv_caches_are_left_out(tmp_path: Path) -> None:
    expected = write_quantized(tmp_path, FORMATS["float-quantized, channel"])
    damaged(tmp_path, lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(1)}))
    assert torch.equal(logits(load_model(open_checkpoint(tmp_path), torch.float32)), logits(expected))


def test_exported_weights_are_the_dequantized_ones(tmp_path: Path) -> None:
    expected = write_quantized(tmp_path / "from", FORMATS["awq"]).state_dict()
    tensors = dict(_cast(open_checkpoint(tmp_path / "from"), torch.float32, silent))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    (tmp_path / "to").mkdir()
    write_shards(tmp_path / "to", tensors)
    assert set(load_file(tmp_path / "to" / "model.safetensors")) == set(expected)
