"""Full-precision folders whose weights are quantized while they are read."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corral.checkpoints.source import open_checkpoint
from corral.engine.build import build_engine
from corral.engine.networks import Runners, load_network
from corral.engine.options import EngineOptions
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.errors import CheckpointError, RequestError
from corral.kernels.packed_llama import PackedLlama
from corral.model.llama import Llama
from corral.quant import Affine, Codebook, Float8
from corral.quant.linear import QuantizedLinear
from corral.quant.on_load import SCHEMES, quantized
from tests.checkpoints.quantized_folders import FORMATS, write_quantized
from tests.checkpoints.writers import write_hf
from tests.engine.engines import run
from tests.engine.test_quantized_networks import CPU, logits
from tests.kernels.networks import MODEL, needs_native
from tests.random_models import random_model

BITS = {"int8": 8.5, "int4": 5.0, "nf4": 4.25, "fp8": 16.0}  # fp8 is unpacked to run


def quantizing(scheme: str) -> EngineOptions:
    return EngineOptions(kernels="native", threads=1, exact_activations=True, quantize=scheme)


def on_torch(scheme: str) -> EngineOptions:
    return EngineOptions(kernels="torch", quantize=scheme)


@needs_native
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_runs_with_the_weights_that_the_scheme_makes(tmp_path: Path, scheme: str) -> None:
    write_hf(random_model(MODEL), tmp_path, 1)
    model = random_model(MODEL)
    for name, weight in model.state_dict().items():
        made = quantized(name, weight, scheme)
        if not isinstance(made, Tensor):
            weight.copy_(made.dequantize())
    expected = logits(model)
    network = load_network(open_checkpoint(tmp_path), "auto", CPU, quantizing(scheme))
    assert isinstance(network, PackedLlama)

    def error(got: Tensor) -> float:
        return float((got - expected).norm() / expected.norm())

    plain = error(logits(random_model(MODEL)))
    got = error(logits(network))
    assert got < (4 if scheme == "nf4" else 1.5) * error(logits(model.bfloat16()))
    assert scheme in ("int8", "fp8") or got < plain / 2, "the weights have not been quantized"
    layers = [matrix for name, matrix in network.matrices.items() if "layers" in name]
    weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in layers)
    assert sum(matrix.num_bytes for matrix in layers) * 8 / weights == pytest.approx(BITS[scheme], rel=0.1)


def test_matrices_alone_are_quantized() -> None:
    families = {"int8": Affine, "int4": Affine, "nf4": Codebook, "fp8": Float8}
    weight = torch.randn(8, 48)
    for scheme, family in families.items():
        assert isinstance(quantized("model.layers.0.mlp.up_proj.weight", weight, scheme), family)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert quantized(name, weight, scheme) is weight
        assert isinstance(quantized("model.norm.weight", weight[0], scheme), Tensor)


@needs_native
def test_what_cannot_be_quantized_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"quantize is 'int3'; it must be one of int8, int4, nf4, fp8"):
        EngineOptions(quantize="int3")
    with pytest.raises(RequestError, match=r"quantize is \['int4'\]; it must be one of"):
        EngineOptions(quantize=["int4"])  # type: ignore[arg-type]
    write_quantized(tmp_path / "nf4", FORMATS["nf4"])
    model = random_model(MODEL)
    model.state_dict()["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    write_hf(model, tmp_path / "nan", 1)
    for options in (quantizing("int4"), on_torch("int4")):
        with pytest.raises(RequestError, match=r"is quantized already: .*; leave it out"):
            load_network(open_checkpoint(tmp_path / "nf4"), "auto", CPU, options)
        with pytest.raises(CheckpointError, match=r"up_proj\.weight cannot be quantized: .* not finite"):
            load_network(open_checkpoint(tmp_path / "nan"), "auto", CPU, options)


@needs_native
def test_a_network_that_is_loaded_is_not_quantized_behind_the_back() -> None:
    for options in (quantizing("int8"), on_torch("int8")):
        runners = Runners(options, CPU)
        with pytest.raises(RequestError, match="those of this network are there"):
            runners.prepare(random_model(MODEL))
        runners.prepare(random_model(MODEL), is_draft=True)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_torch_runs_the_weights_that_the_scheme_makes(tmp_path: Path, scheme: str, dtype: str) -> None:
    model = random_model(MODEL)
    write_hf(model, tmp_path, 1)
    network = load_network(open_checkpoint(tmp_path), dtype, CPU, on_torch(scheme))
    assert isinstance(network, Llama)
    assert dtype == "auto" or network.dtype == getattr(torch, dtype)
    layers = [module for module in network.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 7 * MODEL.num_hidden_layers
    for name, weight in model.state_dict().items():
        made = quantized(name, weight, scheme)
        if not isinstance(made, Tensor):
            weight.copy_(made.dequantize())
            kept = network.get_submodule(name.removesuffix(".weight"))
            assert isinstance(kept, QuantizedLinear)
            assert torch.equal(kept.weight.dequantize(), weight)
    expected = logits(model)
    bound = 1e-5 if network.dtype == torch.float32 else 0.03
    assert float((logits(network) - expected).norm() / expected.norm()) < bound
    bits = sum(layer.compact.num_bytes for layer in layers) * 8
    bits_each = bits / sum(layer.in_features * layer.out_features for layer in layers)
    assert bits_each == pytest.approx(8.25 if scheme == "fp8" else BITS[scheme], rel=0.1)


@pytest.mark.parametrize("shards", [1, 3])
def test_biases_and_a_tied_head_stay_with_quantized_layers(tmp_path: Path, shards: int) -> None:
    """A bias may be read before its weight, or after."""
    config = replace(MODEL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    model = random_model(config)
    write_hf(model, tmp_path, shards)
    network = load_network(open_checkpoint(tmp_path), "float32", CPU, on_torch("int8"))
    assert isinstance(network, Llama)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    for name, weight in model.state_dict().items():
        if name.endswith(".bias"):
            assert torch.equal(network.get_parameter(name), weight)
        made = quantized(name, weight, "int8")
        if not isinstance(made, Tensor):
            weight.copy_(made.dequantize())
    expected = logits(model)
    assert float((logits(network) - expected).norm() / expected.norm()) < 1e-5


def test_an_engine_on_torch_guesses_with_a_draft_model_that_is_not_quantized(tmp_path: Path) -> None:
    write_hf(random_model(MODEL), tmp_path, 1)
    checkpoint = open_checkpoint(tmp_path)
    speculative = {"model": str(tmp_path), "num_speculative_tokens": 3}
    options = EngineOptions.of(
        {"kernels": "torch", "quantize": "int8", "speculative_config": speculative, "max_model_len": 64}
    )
    network = load_network(checkpoint, "float32", CPU, options)
    draft = load_network(checkpoint, "float32", CPU, replace(options, quantize=None))
    request = Request([1, 2, 3], SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
    texts = []
    for guesser in (draft, None):
        given = options if guesser is not None else replace(options, speculative_config=None)
        with closing(build_engine(network, None, given, guesser)) as engine:
            texts.append(run(engine, [request])[0].outputs[0].token_ids)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


@needs_native
def test_a_head_that_is_not_finite_is_refused_in_words(tmp_path: Path) -> None:
    model = random_model(MODEL)
    model.state_dict()["lm_head.weight"][3, 3] = torch.inf
    write_hf(model, tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"head cannot be quantized: .* not finite; the files"):
        load_network(open_checkpoint(tmp_path), "auto", CPU, quantizing("int8"))
