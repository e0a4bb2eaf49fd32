"""Training states against torch's own optimizer, activations against what torch's autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.model.presets import PRESETS
from corral.plan import Training
from corral.plan.activations import saved_by_layer, saved_by_norm, training_bytes
from corral.plan.training import STATES

LLAMA_8B = PRESETS["llama-3.1-8b"].config
SMALL = LlamaConfig(
    vocab_size=64,
    hidden_size=256,
    intermediate_size=896,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
)
TOKENS = 128
WIDTHS = {torch.bfloat16: 2, torch.float32: 4}


def kept_for_backward(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `forward`, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def kept_by_transformers(config: LlamaConfig, dtype: torch.dtype) -> int:
    hf = TransformersConfig(**config.to_hf())
    decoder = LlamaForCausalLM._from_config(hf, attn_implementation="sdpa").to(dtype).train().model
    tokens = torch.zeros(1, TOKENS, dtype=torch.long)
    return kept_for_backward(decoder, lambda: decoder(tokens, use_cache=False).last_hidden_state)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_a_layer_keeps_exactly_what_transformers_layer_keeps(dtype: torch.dtype) -> None:
    more = kept_by_transformers(SMALL, dtype)
    less = kept_by_transformers(replace(SMALL, num_hidden_layers=2), dtype)
    assert saved_by_layer(SMALL, TOKENS, WIDTHS[dtype]) == more - less


@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_whole_network_keeps_exactly_what_transformers_network_keeps(dtype: torch.dtype) -> None:
    width = WIDTHS[dtype]
    output = TOKENS * SMALL.hidden_size * width  # kept by the head, which this forward pass leaves out
    token_ids = TOKENS * 8
    cos_and_sin = 2 * TOKENS * SMALL.head_dim * width
    layers = SMALL.num_hidden_layers * saved_by_layer(SMALL, TOKENS, width)
    expected = layers + saved_by_norm(SMALL, TOKENS, width) - output + token_ids + cos_and_sin
    assert kept_by_transformers(SMALL, dtype) == expected


@pytest.mark.parametrize(("states", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_states_are_as_large_as_those_of_torchs_adamw(states: str, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(1000, dtype=dtype))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert STATES[states].weight * 1000 == weight.nbytes
    assert STATES[states].gradient * 1000 == weight.grad.nbytes
    state = optimizer.state[weight]
    assert STATES[states].optimizer_bytes(1000) == state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes


def test_mixed_precision_takes_16_bytes_and_8bit_6_bytes_and_scales_for_each_parameter() -> None:
    each = {
        name: states.weight + states.gradient + states.optimizer_bytes(256 * 1000) / 256_000
        for name, states in STATES.items()
    }
    assert each == {"mixed": 16, "bf16": 8, "float32": 16, "8bit": 6 + 2 * 4 / 256}


def test_checkpointing_keeps_one_input_for_each_layer_and_one_layer_whole() -> None:
    tokens, width = 2048, 2
    full = training_bytes(LLAMA_8B, tokens, width, checkpointing=False)
    small = training_bytes(LLAMA_8B, tokens, width, checkpointing=True)
    inputs = 32 * tokens * 4096 * width
    assert inputs < small < full / 4


def test_logits_over_a_128k_vocabulary_outweigh_the_layers_until_the_loss_is_chunked() -> None:
    whole = training_bytes(LLAMA_8B, 8192, 2, checkpointing=True)
    chunked = training_bytes(LLAMA_8B, 8192, 2, checkpointing=True, loss_chunk=256)
    assert whole - chunked > 8192 * LLAMA_8B.vocab_size * 4
    assert training_bytes(LLAMA_8B, 100, 2, checkpointing=True, loss_chunk=256) == training_bytes(
        LLAMA_8B, 100, 2, checkpointing=True
    )


@pytest.mark.parametrize(
    ("name", "method", "devices", "measured"),
    [
        ("llama-3.1-8b", "lora", 1, 16.2),
        ("llama-3.1-8b", "qlora", 1, 7.4),
        ("llama-3.1-70b", "lora", 8, 27.6),
    ],
)
def test_a_plan_is_at_most_a_tenth_above_what_torchtune_measured(
    name: str, method: str, devices: int, measured: float
) -> None:
    """torchtune's README: GiB on each device at batch 2, 2,048 packed tokens, chunked loss, compiled."""
    workload = Training(method, seq=2048, batch=2, rank=8, loss_chunk=512)
    planned = sum(part.bytes for part in workload.parts(PRESETS[name].config, devices)) / 2**30
    assert measured <= planned <= 1.1 * measured


def test_many_devices_divide_the_states_but_not_the_activations() -> None:
    one = {part.name: part.bytes for part in Training("full", seq=512).parts(LLAMA_8B, 1)}
    eight = {part.name: part.bytes for part in Training("full", seq=512).parts(LLAMA_8B, 8)}
    assert eight["optimizer_states"] * 8 == one["optimizer_states"]
    assert eight["activations"] == one["activations"]
    assert "gathered_weights" in eight
    assert "gathered_weights" not in one


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (Training("dpo", seq=1), "--train is 'dpo'; use one of full, lora, qlora"),
        (Training("full", seq=1, states="fp4"), "--states is 'fp4'; use one of"),
        (Training("full", seq=0), "--seq is 0; it must be at least 1"),
        (Training("full", seq=131_073), "--seq is 131073, but the model sees at most 131072"),
        (Training("full", seq=1, batch=0), "--batch is 0"),
        (
            Training("full", seq=1, dtype="int4"),
            "--dtype is 'int4', but --states mixed keeps weights of 16 bits",
        ),
        (Training("full", seq=1, loss_chunk=0), "--loss-chunk is 0"),
        (Training("lora", seq=1, dtype="int8"), "Use --train qlora for a 4-bit base"),
        (Training("lora", seq=1, rank=0), "--lora-rank is 0"),
        (Training("lora", seq=1, targets=()), "--lora-targets names nothing; use some of q_proj"),
        (Training("lora", seq=1, targets=("wq",)), "--lora-targets names wq; use some of q_proj"),
        (Training("qlora", seq=1, dtype="bfloat16"), "--train qlora keeps the base in nf4"),
    ],
)
def test_training_that_makes_no_sense_is_refused_in_words(workload: Training, words: str) -> None:
    with pytest.raises(PlanError) as refused:
        workload.check(LLAMA_8B, 1)
    assert words in str(refused.value)
