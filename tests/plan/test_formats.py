"""Sizes of weights and KV caches, against real modules, real caches and published measurements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaForCausalLM
from transformers import LlamaConfig as TransformersConfig

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.model.presets import PRESETS
from corral.plan.formats import (
    WEIGHT_FORMATS,
    kv_bytes_per_token,
    kv_format,
    weight_bytes,
    weight_format,
)
from corral.plan.shapes import linear_shapes, lora_parameters

LLAMA_8B = PRESETS["llama-3.1-8b"].config


@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "llama-3.1-405b"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unquantized_weights_are_those_of_transformers_network(name: str, dtype: str) -> None:
    config = PRESETS[name].config
    with torch.device("meta"):
        network = LlamaForCausalLM(TransformersConfig(**config.to_hf())).to(getattr(torch, dtype))
    real = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    assert weight_bytes(config, weight_format(dtype)).total == real


@given(
    heads=st.integers(1, 4),
    groups=st.integers(1, 4),
    hidden=st.integers(1, 64),
    layers=st.integers(1, 5),
    tied=st.booleans(),
    bias=st.booleans(),
)
def test_parts_of_the_weights_add_up_to_the_parameters(
    heads: int, groups: int, hidden: int, layers: int, tied: bool, bias: bool
) -> None:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads * groups,
        num_key_value_heads=heads,
        head_dim=4,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
    assert weight_bytes(config, weight_format("float32")).total == 4 * config.num_parameters


def test_int8_weights_of_8b_match_the_published_size_of_a_weight_only_checkpoint() -> None:
    """torchao's published table: Llama 3.1 8B goes from 16.1 to 9.1 GB in 8 bits."""
    assert weight_bytes(LLAMA_8B, weight_format("bfloat16")).total / 1e9 == pytest.approx(16.1, abs=0.05)
    for name in ("int8", "fp8"):
        assert weight_bytes(LLAMA_8B, weight_format(name)).total / 1e9 == pytest.approx(9.1, abs=0.05)


def test_double_quantized_nf4_costs_0_127_bits_more_than_4() -> None:
    elements = 4096 * 4096
    assert 8 * weight_format("nf4").matrix_bytes(4096, 4096) / elements - 4 == pytest.approx(0.127, abs=1e-4)


def test_int4_carries_a_scale_and_a_zero_for_each_started_group_of_128() -> None:
    assert weight_format("int4").matrix_bytes(2, 256) == 2 * (256 // 2 + 2 * 4)
    assert weight_format("int4").matrix_bytes(2, 257) == (2 * (257 * 4 + 3 * 32)) // 8


def test_a_smaller_format_never_takes_more() -> None:
    order = ("float32", "bfloat16", "fp8", "int4", "nf4")
    sizes = [weight_bytes(LLAMA_8B, WEIGHT_FORMATS[name]).total for name in order]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kv_cache_is_as_large_as_the_one_transformers_fills(dtype: str) -> None:
    config = PRESETS["smollm2-135m"].config
    cache, batch, tokens = DynamicCache(), 2, 7
    entry = torch.zeros(
        batch, config.num_key_value_heads, tokens, config.head_dim, dtype=getattr(torch, dtype)
    )
    for layer in range(config.num_hidden_layers):
        cache.update(entry.clone(), entry.clone(), layer)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert batch * tokens * kv_bytes_per_token(config, kv_format(dtype)) == real


def test_an_int8_kv_cache_has_a_bfloat16_scale_for_each_token_and_head() -> None:
    entry = (
        torch.zeros(LLAMA_8B.head_dim, dtype=torch.int8).nbytes + torch.zeros(1, dtype=torch.bfloat16).nbytes
    )
    expected = 2 * LLAMA_8B.num_hidden_layers * LLAMA_8B.num_key_value_heads * entry
    assert kv_bytes_per_token(LLAMA_8B, kv_format("int8")) == expected


def test_lora_adapters_are_two_thin_matrices_beside_each_target() -> None:
    targets = ("q_proj", "v_proj", "down_proj")
    shapes = linear_shapes(LLAMA_8B)
    layer = [
        torch.empty(shape, device="meta")
        for target in targets
        for shape in ((16, shapes[target][1]), (shapes[target][0], 16))
    ]
    expected = LLAMA_8B.num_hidden_layers * sum(matrix.numel() for matrix in layer)
    assert lora_parameters(LLAMA_8B, 16, targets) == expected


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"--dtype is 'q9'; use one of float32, .* nf4"):
        weight_format("q9")
    with pytest.raises(PlanError, match=r"--kv-dtype is 'int4'; use one of float32, .* int8"):
        kv_format("int4")


def test_short_names_and_capitals_are_understood() -> None:
    assert weight_format("BF16") is weight_format("bfloat16")
    assert kv_format("fp16") is kv_format("float16")
