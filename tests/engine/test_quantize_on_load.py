"""Full-precision folders whose weights are quantized while they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corral.checkpoints.source import open_checkpoint
from corral.engine.networks import Runners, load_network
from corral.engine.options import EngineOptions
from corral.errors import CheckpointError, RequestError
from corral.kernels.packed_llama import PackedLlama
from corral.quant import Affine, Codebook, Float8
from corral.quant.on_load import SCHEMES, quantized
from tests.checkpoints.quantized_folders import FORMATS, write_quantized
from tests.checkpoints.writers import write_hf
from tests.engine.test_quantized_networks import CPU, logits
from tests.kernels.networks import MODEL, needs_native
from tests.random_models import random_model

BITS = {"int8": 8.5, "int4": 5.0, "nf4": 4.25, "fp8": 16.0}  # fp8 is unpacked to run


def quantizing(scheme: str) -> EngineOptions:
    return EngineOptions(kernels="native", threads=1, exact_activations=True, quantize=scheme)


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
    with pytest.raises(RequestError, match="quantize is 'int4', which only the native kernels of a CPU run"):
        load_network(None, "auto", CPU, EngineOptions(kernels="torch", quantize="int4"))  # type: ignore[arg-type]
    write_quantized(tmp_path / "nf4", FORMATS["nf4"])
    with pytest.raises(RequestError, match=r"is quantized already: .*; leave it out"):
        load_network(open_checkpoint(tmp_path / "nf4"), "auto", CPU, quantizing("int4"))
    model = random_model(MODEL)
    model.state_dict()["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    write_hf(model, tmp_path / "nan", 1)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight cannot be quantized: .* not finite"):
        load_network(open_checkpoint(tmp_path / "nan"), "auto", CPU, quantizing("int8"))


@needs_native
def test_a_network_that_is_loaded_is_not_quantized_behind_the_back() -> None:
    with pytest.raises(RequestError, match="those of this network are there"):
        Runners(quantizing("int8"), CPU).prepare(random_model(MODEL))


@needs_native
def test_a_head_that_is_not_finite_is_refused_in_words(tmp_path: Path) -> None:
    model = random_model(MODEL)
    model.state_dict()["lm_head.weight"][3, 3] = torch.inf
    write_hf(model, tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"head cannot be quantized: .* not finite; the files"):
        load_network(open_checkpoint(tmp_path), "auto", CPU, quantizing("int8"))
