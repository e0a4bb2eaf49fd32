from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig as OracleConfig
from transformers import LlamaForCausalLM

from corral.errors import ConfigError
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.presets import PRESETS, find_preset

PUBLISHED = {  # safetensors' parameter counts, as the Hub's model pages show them
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}

GOOD: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert PRESETS[name].config.num_parameters == PUBLISHED[name]


def test_the_parameter_count_is_that_of_the_network() -> None:
    for fields in (GOOD, {**GOOD, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}):
        network = LlamaForCausalLM(OracleConfig(**{"tie_word_embeddings": False, **fields}))
        assert LlamaConfig.from_hf(fields).num_parameters == network.num_parameters()


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_being_written_and_read(name: str) -> None:
    config = PRESETS[name].config
    assert LlamaConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "smollm2-135m"])
def test_a_configuration_written_by_transformers_5_is_read(name: str) -> None:
    config = PRESETS[name].config
    written = OracleConfig(**config.to_hf()).to_dict()
    assert "rope_parameters" in written
    assert LlamaConfig.from_hf(written) == config


def test_presets_are_found_by_short_name_and_by_repository() -> None:
    assert find_preset("Llama-3.1-8B-Instruct") is find_preset("meta-llama/Llama-3.1-8B-Instruct")
    assert find_preset("llama-4-scout") is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rope_scaling": "yes"}, "rope_scaling"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"model_type": "gemma"}, "gemma"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "su", "factor": 4.0}}, "su"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ],
)
def test_a_bad_field_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LlamaConfig.from_hf({**GOOD, **change})


def test_old_and_new_spellings_of_rope_scaling_are_read() -> None:
    old = LlamaConfig.from_hf({**GOOD, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = LlamaConfig.from_hf(
        {**GOOD, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}
    )
    assert old.rope_scaling == new.rope_scaling == RopeScaling("linear", 2.0)
    assert (old.rope_theta, new.rope_theta) == (10000.0, 7.0)
