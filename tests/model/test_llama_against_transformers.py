"""The network against transformers' Llama, for every option that a config.json can set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig as OracleConfig
from transformers import LlamaForCausalLM

from corral.model.attention import PackedCausal
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.llama import Llama
from tests.engine.reference_loop import KVCache
from tests.random_models import random_model

SMALL = LlamaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    dtype="float32",
)
VARIANTS = {
    "grouped queries": SMALL,
    "one key-value head": replace(SMALL, num_key_value_heads=1),
    "no grouping": replace(SMALL, num_key_value_heads=4),
    "tied head": replace(SMALL, tie_word_embeddings=True),
    "attention biases": replace(SMALL, attention_bias=True),
    "mlp biases": replace(SMALL, mlp_bias=True),
    "head_dim apart from hidden_size": replace(SMALL, head_dim=32),
    "linear scaling": replace(SMALL, rope_scaling=RopeScaling("linear", 4.0)),
    "dynamic scaling": replace(SMALL, rope_scaling=RopeScaling("dynamic", 2.0)),
    "llama3 scaling": replace(SMALL, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), rope_theta=1e4),
}


def oracle(model: Llama) -> Any:
    """transformers' network with the same weights."""
    network = LlamaForCausalLM(OracleConfig(**model.config.to_hf(), attn_implementation="eager"))
    missing, unexpected = network.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    return network.float().eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name: str) -> None:
    # 50 tokens lie within the trained context; 100 tokens go beyond it, where "dynamic" rescales.
    for length in (50, 100) if name == "dynamic scaling" else (50,):
        config = VARIANTS[name]
        model = random_model(config)
        scaled = Llama(config, context_length=length)
        scaled.load_state_dict(model.state_dict())
        tokens = torch.randint(0, config.vocab_size, (length,), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            hidden = scaled(tokens, torch.arange(length), PackedCausal([0, length]))
            expected = oracle(model)(tokens[None]).logits[0]
        torch.testing.assert_close(scaled.logits(hidden), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("start", [0, 8180, 131_022])
def test_llama_3_1_equals_transformers_up_to_the_last_position(llama31_model: Llama, start: int) -> None:
    tokens = torch.randint(0, 512, (50,), generator=torch.Generator().manual_seed(start))
    positions = torch.arange(start, start + 50)
    with torch.no_grad():
        expected = oracle(llama31_model)(tokens[None], position_ids=positions[None]).logits[0]
    hidden = llama31_model(tokens, positions, PackedCausal([0, 50]))
    torch.testing.assert_close(llama31_model.logits(hidden), expected, atol=2e-4, rtol=0)


def test_packed_documents_do_not_see_each_other() -> None:
    model = random_model(SMALL)
    tokens = torch.randint(0, SMALL.vocab_size, (20,), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(12), torch.arange(8)])
    packed = model(tokens, positions, PackedCausal([0, 12, 20]))
    first = model(tokens[:12], torch.arange(12), PackedCausal([0, 12]))
    second = model(tokens[12:], torch.arange(8), PackedCausal([0, 8]))
    torch.testing.assert_close(packed, torch.cat([first, second]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_a_prompt_in_chunks_equals_the_prompt_at_once(chunk: int) -> None:
    model = random_model(SMALL)
    tokens = torch.randint(0, SMALL.vocab_size, (20,), generator=torch.Generator().manual_seed(3))
    cache = KVCache(SMALL, 20, torch.float32, torch.device("cpu"))
    pieces = []
    for start in range(0, 20, chunk):
        piece = tokens[start : start + chunk]
        pieces.append(model(piece, torch.arange(start, start + len(piece)), cache))
        cache.advance(len(piece))
    whole = model(tokens, torch.arange(20), PackedCausal([0, 20]))
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=0)


def test_gradients_reach_every_weight() -> None:
    model = random_model(SMALL).requires_grad_(True)
    tokens = torch.arange(20)
    hidden = model(tokens, torch.arange(20), PackedCausal([0, 12, 20]))
    torch.autograd.backward(torch.nn.functional.cross_entropy(model.logits(hidden), tokens.roll(-1)))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_model_on_the_meta_device_takes_no_memory_but_knows_its_frequencies() -> None:
    model = Llama.on_meta(SMALL)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.inverse_frequencies.is_meta
