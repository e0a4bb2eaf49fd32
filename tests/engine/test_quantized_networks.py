"""Quantized folders run on the native kernels as on PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corral.checkpoints.source import open_checkpoint
from corral.engine.cache.storage import KVStorage
from corral.engine.networks import Network, Runners, load_network
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.runner import Runner, TorchRunner
from corral.kernels.packed_llama import PackedLlama
from corral.model.llama import Llama
from tests.checkpoints.quantized_folders import FORMATS, write_quantized
from tests.kernels.networks import needs_native

CPU = torch.device("cpu")
TOKENS = list(range(3, 40))
NATIVE = EngineOptions(kernels="native", threads=1, exact_activations=True)


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
