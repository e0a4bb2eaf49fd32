"""Quantized folders run on the native kernels and on PyTorch, and take no more memory than they must."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.devices import pick_dtype
from corral.engine.cache.storage import KVStorage
from corral.engine.networks import Network, Runners, load_network
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.graphs import GraphRunner
from corral.engine.run.runner import Runner, TorchRunner
from corral.kernels.packed_llama import PackedLlama, pack_llama
from corral.model.llama import Llama
from corral.quant.linear import QuantizedLinear
from tests.checkpoints.quantized_folders import FORMATS, is_quantized, write_quantized
from tests.checkpoints.writers import write_hf
from tests.kernels.networks import library, needs_native
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL, random_model

CPU = torch.device("cpu")
TOKENS = list(range(3, 40))
NATIVE = EngineOptions(kernels="native", threads=1, exact_activations=True)
TORCH = EngineOptions(kernels="torch")
UP = "model.layers.0.mlp.up_proj.weight"


def logits(network: Network) -> Tensor:
    adapters = AdapterSet(network)
    storage = KVStorage(network.config, 8, 16, "auto", network.dtype)
    runner: Runner
    if isinstance(network, Llama):
        runner = TorchRunner(network, storage, adapters)
    else:
        runner = Runners(NATIVE, CPU).runner(network, storage, adapters)
    span = Span(TOKENS, 0, [1, 2, 3], range(len(TOKENS)), None)
    return runner.logits(runner.run([span]), [None] * len(TOKENS)).float()


@needs_native
@pytest.mark.parametrize("name", FORMATS)
def test_native_kernels_are_as_near_to_the_weights_as_torch_in_bfloat16(tmp_path: Path, name: str) -> None:
    """Levels of codebooks are bytes there, and lose a little more than bfloat16."""
    floats = write_quantized(tmp_path, FORMATS[name])
    expected = logits(floats)
    network = load_network(open_checkpoint(tmp_path), "auto", CPU, NATIVE)
    assert isinstance(network, PackedLlama)

    def error(got: Tensor) -> float:
        return float((got - expected).norm() / expected.norm())

    assert error(logits(network)) < (4 if name in ("nf4", "fp4") else 1.5) * error(logits(floats.bfloat16()))


def quantized_layers(network: Network) -> dict[str, QuantizedLinear]:
    assert isinstance(network, Llama)
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLinear)}


def as_stored(folder: Path) -> Llama:
    """The network of a folder as a GPU has it."""
    return load_model(open_checkpoint(folder), pick_dtype("auto", CPU), as_stored=True)


def dense_like(network: Network, folder: Path) -> Llama:
    """The network of a folder with all weights in one type: the same."""
    dense = load_network(open_checkpoint(folder), str(network.dtype).removeprefix("torch."), CPU, TORCH)
    assert isinstance(dense, Llama)
    return dense


@pytest.mark.parametrize("name", FORMATS)
def test_torch_runs_the_weights_as_they_are_stored(tmp_path: Path, name: str) -> None:
    floats = write_quantized(tmp_path, FORMATS[name])
    network = as_stored(tmp_path)
    layers = quantized_layers(network)
    assert set(layers) == {n.removesuffix(".weight") for n in floats.state_dict() if is_quantized(n)}
    for module, layer in layers.items():
        assert torch.equal(layer.weight.dequantize(), floats.get_parameter(f"{module}.weight"))
    expected = logits(dense_like(network, tmp_path))
    assert float((logits(network) - expected).norm() / expected.norm()) < (
        0.02 if "order" in name else 1e-4  # sums of columns in another order
    )


@pytest.mark.parametrize("name", FORMATS)
def test_codes_of_4_bits_take_4_bits(tmp_path: Path, name: str) -> None:
    write_quantized(tmp_path, FORMATS[name])
    layers = quantized_layers(as_stored(tmp_path)).values()
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    bits = sum(layer.compact.num_bytes for layer in layers) * 8 / weights
    # Scales are float32 in some formats, and levels and orders weigh something in such a small model.
    assert bits < (6 if any(word in name for word in ("4", "awq", "3 bits", "pack")) else 11)


def test_a_type_that_is_named_is_that_of_all_weights(tmp_path: Path) -> None:
    floats = write_quantized(tmp_path, FORMATS["nf4"])
    for dtype in ("float32", "bfloat16"):
        network = load_network(open_checkpoint(tmp_path), dtype, CPU, TORCH)
        assert isinstance(network, Llama)
        assert not quantized_layers(network)
        assert {tensor.dtype for tensor in network.state_dict().values()} == {getattr(torch, dtype)}
    assert torch.equal(network.get_parameter(UP), floats.get_parameter(UP).bfloat16())


@pytest.mark.parametrize("name", ["gptq 8 bits, activation order", "nf4"])
def test_adapters_lie_beside_quantized_layers(tmp_path: Path, name: str) -> None:
    write_adapter(
        write_quantized(tmp_path / "model", FORMATS[name]), tmp_path / "adapter", target_modules="all-linear"
    )
    network = as_stored(tmp_path / "model")
    assert quantized_layers(network)
    dense = dense_like(network, tmp_path / "model")
    got, expected = (adapted_logits(model, tmp_path / "adapter") for model in (network, dense))
    bare = logits(dense)
    assert (got - expected).norm() < 0.01 * (bare - expected).norm()


def adapted_logits(network: Network, folder: Path) -> Tensor:
    assert isinstance(network, Llama)
    adapters = AdapterSet(network)
    adapters.load("a", folder)
    runner = TorchRunner(network, KVStorage(network.config, 8, 16, "auto", network.dtype), adapters)
    span = Span(TOKENS, 0, [1, 2, 3], range(len(TOKENS)), "a")
    return runner.logits(runner.run([span]), ["a"] * len(TOKENS)).float()


def test_steps_that_are_captured_run_quantized_layers(tmp_path: Path) -> None:
    """As a CUDA graph would replay them, but without the graph."""
    write_quantized(tmp_path, FORMATS["awq"])
    network = as_stored(tmp_path)
    results = []
    for captured in (False, True):
        storage = KVStorage(network.config, 8, 16, "auto", network.dtype)
        runner: Runner = TorchRunner(network, storage, AdapterSet(network))
        if captured:
            runner = GraphRunner(network, storage, AdapterSet(network), lambda function: function)
        runner.run([Span(TOKENS, 0, [1, 2, 3], range(len(TOKENS)), None)])
        results.append(runner.run([Span([5], len(TOKENS), [1, 2, 3], range(1), None)]).float())
    assert torch.allclose(results[0], results[1], rtol=2**-6, atol=2**-6)


@needs_native
def test_a_network_of_torch_is_packed_as_the_checkpoint_is(tmp_path: Path) -> None:
    write_quantized(tmp_path, FORMATS["awq"])
    checkpoint = open_checkpoint(tmp_path)
    network = as_stored(tmp_path)
    packed = pack_llama(library(), network)
    expected = load_network(checkpoint, "auto", CPU, NATIVE)
    assert isinstance(expected, PackedLlama)
    assert {n: m.layout for n, m in packed.matrices.items()} == {
        n: m.layout for n, m in expected.matrices.items()
    }
    assert all((m.data == expected.matrices[n].data).all() for n, m in packed.matrices.items())


def test_activations_are_rounded_only_where_that_is_not_ruled_out(tmp_path: Path) -> None:
    write_hf(random_model(SMALL), tmp_path, 1)
    for exact in (True, False):
        options = EngineOptions(kernels="torch", exact_activations=exact, quantize="fp8")
        layers = quantized_layers(load_network(open_checkpoint(tmp_path), "auto", CPU, options)).values()
        assert {layer.exact for layer in layers} == {exact}


def test_a_cpu_without_native_kernels_computes_with_floats(tmp_path: Path) -> None:
    """It would unpack the weights at every step."""
    write_quantized(tmp_path, FORMATS["awq"])
    assert not quantized_layers(load_network(open_checkpoint(tmp_path), "auto", CPU, TORCH))
