"""Layers that are run one at a time compute what the network computes, and AWQ's scales change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.errors import CheckpointError
from corral.model.attention import PackedCausal
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.llama import Layer
from corral.quant.algorithms.grid import round_to_nearest
from corral.quantizer.awq_layer import scale_layer
from corral.quantizer.layers import STAGES, LayerReader, Windows, linear_of
from corral.quantizer.measures import Inputs, unscaled
from tests.quantizer.models import MODEL, salient_model, write_source

CPU = torch.device("cpu")
TOKENS = [[(7 * i + j * j) % 300 for j in range(40)] for i in range(5)]
SCALED = replace(
    MODEL, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), attention_bias=True, mlp_bias=True
)
NOT_GROUPED = replace(MODEL, num_key_value_heads=4)


def opened(folder: Path, config: LlamaConfig) -> tuple[LayerReader, Windows]:
    reader = LayerReader(open_checkpoint(write_source(folder / "model", config)), CPU)
    return reader, Windows.embed(TOKENS, reader)


@pytest.mark.parametrize("config", [MODEL, SCALED, replace(MODEL, tie_word_embeddings=True)])
def test_layer_by_layer_is_the_network(tmp_path: Path, config: LlamaConfig) -> None:
    reader, windows = opened(tmp_path, config)
    with torch.no_grad():
        for i in range(config.num_hidden_layers):
            windows.run(reader.layer(i))
        model = load_model(open_checkpoint(tmp_path / "model"), torch.float32)
        flat, length = torch.tensor(TOKENS).flatten(), len(TOKENS[0])
        positions = torch.arange(length).repeat(len(TOKENS))
        expected = model(flat, positions, PackedCausal(range(0, len(flat) + 1, length)))
        found = model.model.norm(windows.states.flatten(0, 1))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_inputs_are_those_that_the_linear_layers_read(tmp_path: Path) -> None:
    reader, windows = opened(tmp_path, MODEL)
    layer = reader.layer(0)
    seen: dict[str, torch.Tensor] = {}
    for stage in STAGES:
        linear_of(layer, stage[-1]).register_forward_pre_hook(
            lambda _, x, name=stage[-1]: seen.update({name: x[0].detach()})
        )
    with torch.no_grad():
        copies = windows.some(len(TOKENS))
        copies.run(layer)
        for stage in STAGES:
            expected = seen[stage[-1]]
            (found,) = windows.inputs(layer, stage[0])
            assert torch.equal(found, expected)
            inputs = Inputs(windows, layer, stage[0])
            assert torch.allclose(inputs.hessian, 2 * expected.T @ expected / len(expected), atol=1e-4)
            assert inputs.largest == float(expected.abs().max())


@pytest.mark.parametrize("config", [MODEL, NOT_GROUPED, SCALED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scaling_changes_nothing_that_a_layer_computes(
    tmp_path: Path, config: LlamaConfig, dtype: torch.dtype
) -> None:
    reader, windows = opened(tmp_path, config)
    layer = reader.layer(1)
    plain = reader.layer(1)
    names = [name for stage in STAGES for name in stage]
    with torch.no_grad():
        before, after = windows.some(len(TOKENS)), windows.some(len(TOKENS))
        before.run(layer)
        factors, results = scale_layer(
            layer, windows, names, 32, lambda w: round_to_nearest(w, 3, 32).dequantize(), dtype
        )
        after.run(layer)
    assert torch.allclose(after.states, before.states, rtol=1e-4, atol=1e-4)
    assert all(result.error <= result.rtn_error for result in results)
    assert results[0].error < 0.8 * results[0].rtn_error, "queries, keys and values read salient channels"
    expected = [("self_attn", 3), ("mlp", 2), ("mlp.down_proj", 1)]
    if config is NOT_GROUPED:
        expected.insert(1, ("self_attn.o_proj", 1))  # with grouped queries v_proj cannot take its scales
    assert [(result.output_of, len(result.linears)) for result in results] == expected
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        assert torch.equal(norm.weight.to(dtype).float(), norm.weight), "norms are what is written"
    for name in names:
        found = unscaled(linear_of(layer, name).weight, factors[name])
        assert torch.allclose(found, linear_of(plain, name).weight, rtol=1e-5, atol=0)


def test_what_is_missing_or_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    model = salient_model()
    folder = write_source(tmp_path / "model", model=model)
    checkpoint = open_checkpoint(folder)
    checkpoint.config = replace(checkpoint.config, intermediate_size=128)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.\w+\.weight has shape \[\d+, \d+\]; .* asks"
    ):
        LayerReader(checkpoint, CPU).layer(1)
    checkpoint.config = replace(MODEL, num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.3\.input_layernorm\.weight"):
        LayerReader(checkpoint, CPU).layer(3)


def test_a_layer_of_a_reader_is_a_copy(tmp_path: Path) -> None:
    reader, _ = opened(tmp_path, replace(MODEL, dtype="float32"))
    layer = reader.layer(0)
    assert isinstance(layer, Layer)
    layer.mlp.up_proj.weight.data.zero_()
    assert bool(reader.layer(0).mlp.up_proj.weight.any())
