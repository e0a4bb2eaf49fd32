"""Adapters over quantized weights: the forward pass of bitsandbytes, and gradients for the adapters alone."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from torch import nn

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.model.llama import Llama
from corral.quant.linear import QuantizedLinear
from corral.tune.config import ParametersConfig
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.folder import base_weights_of, is_quantized, load_adapters
from corral.tune.parameters.layer import dense_weight
from tests.checkpoints.quantized_folders import FORMATS, write_quantized
from tests.checkpoints.writers import write_hf
from tests.peft_adapters import transformers_llama
from tests.random_models import SMALL, random_model
from tests.tune.parameters.training import (
    assert_near,
    batch_of,
    by_our_names,
    gradients,
    our_logits,
    our_loss,
    peft_folder,
    their_logits,
    their_loss,
)

CONFIG = replace(SMALL, intermediate_size=128)  # blocks of 64, bitsandbytes' default, lie within rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in full precision."""
    folder = tmp_path_factory.mktemp("model")
    write_hf(random_model(CONFIG), folder, 1)
    return folder


def in_nf4(model: Llama) -> Any:
    """transformers' network with the layers in bitsandbytes' 4 bits, as its integration loads them."""
    network = transformers_llama(model)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            small = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=torch.float32,
                compress_statistics=False,
                quant_type="nf4",
            )
            small.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4"
            )
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, small.to("cpu"))
    network.is_loaded_in_4bit = True
    return network


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_nf4_forward_and_gradients_equal_bitsandbytes_and_pefts(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    dense = random_model(CONFIG)
    adapter = peft_folder(dense, tmp_path / "adapter", target_modules="all-linear", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = PeftModel.from_pretrained(in_nf4(dense), str(adapter), is_trainable=True)
    oracle.train()  # in evaluation bitsandbytes multiplies by another kernel, in bfloat16
    model = load_model(open_checkpoint(folder), torch.float32, quantize="nf4")
    ours = model.get_submodule("model.layers.0.mlp.up_proj")
    theirs = oracle.base_model.model.model.layers[0].mlp.up_proj
    assert isinstance(ours, QuantizedLinear)
    assert type(theirs).__module__ == "peft.tuners.lora.bnb"
    stored = theirs.base_layer.weight
    dequantized = bnb.functional.dequantize_4bit(stored.data, stored.quant_state)
    assert torch.equal(ours.weight.dequantize(), dequantized)
    adapters, batch = load_adapters(adapter, model), batch_of(model)
    torch.testing.assert_close(
        our_logits(model, adapters, batch), their_logits(oracle, batch), atol=3e-5, rtol=0
    )
    expected = by_our_names(gradients(their_loss(oracle, batch), oracle.named_parameters()))
    found = gradients(our_loss(model, adapters, batch), adapters.named_parameters())
    assert_near(found, expected, relative=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("base", ["nf4", "int4", "int8"])
def test_training_over_quantized_weights_is_training_over_what_they_stand_for(
    folder: Path, base: Any, method: Any
) -> None:
    checkpoint = open_checkpoint(folder)
    model = load_model(checkpoint, torch.float32, quantize=base)
    config = ParametersConfig(method=method, base=base, targets=["all-linear", "lm_head"])
    assert base_weights_of(config, checkpoint) == base
    assert_trains_as_dense(model, config)


@pytest.mark.parametrize("name", ["awq", "gptq 8 bits, activation order", "nf4", "int-quantized", "fp8"])
def test_stored_quantized_checkpoints_go_under_adapters(tmp_path: Path, name: str) -> None:
    write_quantized(tmp_path, FORMATS[name])
    checkpoint = open_checkpoint(tmp_path)
    assert is_quantized(checkpoint)
    assert base_weights_of(ParametersConfig(), checkpoint) == "as stored"
    assert_trains_as_dense(load_model(checkpoint, torch.float32, as_stored=True), ParametersConfig())


def assert_trains_as_dense(model: Llama, config: ParametersConfig) -> None:
    """Over quantized weights logits and gradients are those over the dequantized; only adapters have any."""
    dense = random_model(model.config)
    for name, module in dense.named_modules():
        if isinstance(module, nn.Linear):
            twin = model.get_submodule(name)
            assert isinstance(twin, nn.Linear | QuantizedLinear)
            module.weight = nn.Parameter(dense_weight(twin, torch.float32), requires_grad=False)
    dense.model.load_state_dict(model.model.state_dict(), strict=False)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) >= 13
    batch, results = batch_of(model), []
    for network in (model, dense):
        adapters = Adapters.new(network, config, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
        loss = our_loss(network, adapters, batch)
        results.append((our_logits(network, adapters, batch), gradients(loss, adapters.named_parameters())))
        assert not any(parameter.requires_grad for parameter in network.parameters())
    torch.testing.assert_close(results[0][0], results[1][0], atol=3e-5, rtol=0)
    assert_near(results[0][1], results[1][1], relative=1e-5)
