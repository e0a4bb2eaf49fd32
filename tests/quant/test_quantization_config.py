"""What config.json and its predecessors say of quantized weights, and of which modules."""

from __future__ import annotations

import pytest
import torch

from corral.errors import ConfigError
from corral.quant import Affine
from corral.quant.encodings import awq
from corral.quant.encodings.awq import AwqSettings
from corral.quant.encodings.bits import pack_words, unpack_words
from corral.quant.encodings.compressed_settings import CompressedTensorsSettings
from corral.quant.encodings.config import Quantization, read_quantization
from corral.quant.encodings.gptq import GptqSettings
from corral.quant.encodings.modules import is_left_out
from corral.quant.encodings.named import EncodingError

OLD_AWQ = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
OLD_GPTQ = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": True, "sym": True}


def test_config_json_wins_over_the_older_files() -> None:
    old = {"quantize_config.json": {**OLD_GPTQ, "bits": 8}}
    assert read_quantization({}, {}) is None
    assert read_quantization({}, old) == Quantization("gptq", GptqSettings(8, 128, True))
    assert read_quantization({}, {"quant_config.json": OLD_AWQ}) == Quantization("awq", AwqSettings(128))
    new = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}
    assert read_quantization(new, old) == Quantization("awq", AwqSettings(64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("awq", r"quantization_config.quant_method is 'awq', which Corral does not read"),
        ({"quant_method": "hqq"}, r"quantization_config.quant_method is 'hqq', which .* it reads awq, gptq"),
        ({"bits": 4}, "quant_method is None"),
        ({"quant_method": ["awq"]}, "quant_method is"),
    ],
)
def test_unknown_methods_are_named(fields: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_quantization({"quantization_config": fields})


def test_a_strategy_that_is_no_name_is_no_traceback() -> None:
    inputs = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": ["token"]}
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "strategy": "channel"},
        "input_activations": inputs,
    }
    found = Quantization.read({"quant_method": "compressed-tensors", "config_groups": {"group_0": group}})
    assert isinstance(found.settings, CompressedTensorsSettings)
    assert found.settings.groups[0][1].activations == "tensor"


def test_errors_name_the_older_file() -> None:
    with pytest.raises(ConfigError, match=r"quantize_config\.json\.bits is 5"):
        read_quantization({}, {"quantize_config.json": {**OLD_GPTQ, "bits": 5}})


def test_lists_of_modules_are_read_as_transformers_reads_them() -> None:
    module = "model.layers.11.mlp.gate_proj"
    assert is_left_out(module, ["model.layers.11"])
    assert is_left_out(module, ["gate_proj"])
    assert is_left_out(module, [r"model.layers.\d+.mlp"])
    assert not is_left_out(module, ["model.layers.1"])
    assert not is_left_out(module, ["gate"])
    assert not is_left_out(module, [])
    with pytest.raises(ConfigError, match="no regular expression"):
        is_left_out(module, ["("])


def test_a_module_that_is_left_out_is_not_quantized() -> None:
    quantization = Quantization("awq", AwqSettings(32, ("lm_head",)))
    tensors = awq.encode(Affine.quantize(torch.randn(8, 32), 4, 32))
    assert quantization.decode("model.layers.0.mlp.up_proj", tensors).shape == (8, 32)
    with pytest.raises(EncodingError, match="leaves this module out"):
        quantization.decode("lm_head", tensors)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_codes_lie_one_after_the_other_in_the_bits_of_the_words(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(0, 1 << bits, (3, count), generator=generator, dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.shape == (3, -(-count * bits // 32))
    for row in range(3):
        number = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words[row]))
        assert [number >> (bits * i) & ((1 << bits) - 1) for i in range(count)] == codes[row].tolist()
        assert number >> (bits * count) == 0
    assert torch.equal(unpack_words(words, bits, count), codes)
