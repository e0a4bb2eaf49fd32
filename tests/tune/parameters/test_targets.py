"""Which layers are adapted, how adapters start, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from corral.model.llama import Llama
from corral.quant import Codebook
from corral.quant.linear import replace_linear
from corral.tune.config import ParametersConfig
from corral.tune.errors import TuneError
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.full import full
from tests.peft_adapters import transformers_llama
from tests.random_models import SMALL, random_model
from tests.tune.parameters.training import batch_of, by_our_names, our_logits, our_loss

MODEL = random_model(SMALL)
BIASED = random_model(replace(SMALL, attention_bias=True), seed=1)


def adapters_of(model: Llama = MODEL, seed: int = 0, **settings: Any) -> Adapters:
    return Adapters.new(model, ParametersConfig(**settings), torch.Generator().manual_seed(seed))


def adapted(**settings: Any) -> list[str]:
    return list(adapters_of(**settings).weights().layers)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", 14),
        (["q_proj", "v_proj"], 4),
        ("q_proj", 2),
        ("self_attn.q_proj", 2),
        ("model.layers.1.mlp.up_proj", 1),
        (r"model\.layers\.0\..*", 7),
        ([r".*\.(gate|up)_proj", "o_proj"], 6),
        (["all-linear", "lm_head"], 15),
        ("lm_head", 1),
    ],
)
def test_targets_are_names_or_ends_of_names_or_expressions(targets: Any, expected: int) -> None:
    names = adapted(targets=targets)
    assert len(names) == expected
    assert names == [name for name, _ in MODEL.named_modules() if name in names]
    assert adapters_of(targets=targets).adapts_head == ("lm_head" in names)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"targets": ["q_proj", "v_prj"]},
            "parameters.targets has 'v_prj', which is no linear layer of this model; near it are v_proj",
        ),
        ({"targets": "proj"}, "parameters.targets has 'proj', which is no linear layer"),
        (
            {"targets": "model.layers.2.self_attn.q_proj"},
            "near it are model.layers.1.self_attn.q_proj, q_proj",
        ),
        (
            {"targets": "c_attn"},
            "there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head",
        ),
        ({"targets": "("}, "parameters.targets has '(', which is no regular expression"),
        ({"targets": []}, "parameters.targets is empty"),
        (
            {"rank_pattern": {"qproj": 2}},
            "parameters.rank_pattern has 'qproj', which is no adapted layer; near",
        ),
        (
            {"targets": "q_proj", "alpha_pattern": {"v_proj": 2.0}},
            "parameters.alpha_pattern has 'v_proj', which is no adapted layer; near it are q_proj",
        ),
        ({"rank_pattern": {"[": 2}}, "parameters.rank_pattern has '[', which is no regular expression"),
        ({"bias": "all"}, "parameters.bias is 'all', but none of 15 layers has a bias; leave it out"),
        ({"bias": "lora_only"}, "parameters.bias is 'lora_only', but none of 14 layers has a bias"),
    ],
)
def test_what_means_no_layer_is_refused_with_what_is_near(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TuneError) as refusal:
        adapters_of(**settings)
    assert sentence in str(refusal.value)


def test_a_quantized_model_is_not_trained_whole() -> None:
    model = random_model(SMALL)
    name = "model.layers.0.mlp.up_proj"
    replace_linear(model, name, Codebook.quantize(model.get_submodule(name).weight, 32))  # type: ignore[arg-type]
    with pytest.raises(TuneError, match=f"method is 'full', but {name} is quantized"):
        full(model)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_new_adapters_change_nothing_yet(method: str) -> None:
    for model in (MODEL, BIASED):
        adapters = adapters_of(model, method=method, targets=["all-linear", "lm_head"])
        batch = batch_of(model)
        with_them, without = our_logits(model, adapters, batch), our_logits(model, None, batch)
        torch.testing.assert_close(with_them, without, atol=1e-6, rtol=0)


def test_new_adapters_are_drawn_as_pefts_are() -> None:
    adapters = adapters_of(rank=8)
    oracle = get_peft_model(transformers_llama(MODEL), LoraConfig(r=8, target_modules="all-linear"))
    theirs = by_our_names(dict(oracle.named_parameters()))
    for name, parameter in adapters.named_parameters():
        assert parameter.shape == theirs[name].shape
        assert parameter.dtype == torch.float32
        if name.endswith("lora_B"):
            assert not parameter.any()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])
        for drawn in (parameter, theirs[name]):
            assert 0.95 * bound < drawn.abs().max() <= bound
            assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_magnitudes_start_as_pefts_do() -> None:
    adapters = adapters_of(BIASED, method="dora", rank=8)
    oracle = get_peft_model(
        transformers_llama(BIASED), LoraConfig(r=8, target_modules="all-linear", use_dora=True)
    )
    theirs = by_our_names(dict(oracle.named_parameters()))
    for name, parameter in adapters.named_parameters():
        if name.endswith("lora_magnitude_vector"):
            torch.testing.assert_close(parameter, theirs[name])


def test_a_seed_gives_the_same_start_whatever_the_order_of_targets() -> None:
    first = adapters_of(seed=3, targets=["q_proj", "v_proj"]).state_dict()
    again = adapters_of(seed=3, targets=["v_proj", "q_proj"]).state_dict()
    other = adapters_of(seed=4, targets=["q_proj", "v_proj"]).state_dict()
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_parameters_have_the_names_of_pefts_files_and_are_counted() -> None:
    adapters = adapters_of(BIASED, targets=["q_proj", "lm_head"], rank=4, bias="all", method="dora")
    names = {name for name, _ in adapters.named_parameters()}
    q = "model.layers.0.self_attn.q_proj"
    assert {f"{q}.lora_A", f"{q}.lora_B", f"{q}.lora_magnitude_vector", f"{q}.bias"} < names
    assert {"lm_head.lora_A", "model.layers.1.self_attn.k_proj.bias"} < names
    assert names == set(adapters.state_dict())
    square, head = 4 * (64 + 64) + 64, 4 * (64 + 128) + 128
    assert adapters.num_parameters == 2 * (square + 64 + 32 + 32 + 64) + head


def test_patterns_give_ranks_and_scales_by_layer() -> None:
    adapters = adapters_of(
        rank=4,
        alpha=8.0,
        rslora=True,
        rank_pattern={"layers.0.self_attn.q_proj": 9},
        alpha_pattern={r".*\.o_proj": 3.0},
    )
    layers = adapters.weights().layers
    assert layers["model.layers.0.self_attn.q_proj"].a.shape[0] == 9
    assert layers["model.layers.0.self_attn.q_proj"].scale == pytest.approx(8 / 3)
    assert layers["model.layers.1.self_attn.o_proj"].scale == pytest.approx(3 / 2)
    assert layers["model.layers.1.self_attn.q_proj"].b.shape[1] == 4


def test_the_model_itself_stays_as_it_was_biases_included() -> None:
    """So that it is its own reference: without the adapters it is the model before training."""
    before = {name: tensor.clone() for name, tensor in BIASED.state_dict().items()}
    adapters = adapters_of(BIASED, bias="all", method="dora")
    loss = our_loss(BIASED, adapters, batch_of(BIASED))
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in adapters.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad)
    assert our_loss(BIASED, adapters, batch_of(BIASED)) != loss
    for name, tensor in BIASED.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert not tensor.requires_grad


def test_adapters_may_be_in_bfloat16_but_magnitudes_stay_float32() -> None:
    small = random_model(SMALL).bfloat16()
    adapters = Adapters.new(
        small, ParametersConfig(method="dora"), torch.Generator().manual_seed(0), torch.bfloat16
    )
    for name, parameter in adapters.named_parameters():
        assert parameter.dtype == (torch.float32 if "magnitude" in name else torch.bfloat16)
    our_loss(small, adapters, batch_of(small)).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in adapters.parameters())
