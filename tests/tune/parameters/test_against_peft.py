"""Logits and gradients equal those of transformers and PEFT, for folders that PEFT wrote."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corral.model.llama import Llama
from corral.tune.activations import checkpoint_activations
from corral.tune.parameters.folder import load_adapters, save_adapter
from corral.tune.parameters.full import full
from tests.peft_adapters import ATTENTION, transformers_llama
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
    their_network,
)

PLAIN = random_model(SMALL)
BIASED = random_model(replace(SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True), seed=1)
MLP = ["gate_proj", "up_proj", "down_proj"]
PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 2, r".*\.o_proj": 7, "^model.layers.0.mlp.*": 1},
    "alpha_pattern": {"q_proj": 3, "layers.1.self_attn.q_proj": 6, "^model.*down_proj": 0.5},
}
VARIANTS: dict[str, tuple[Llama, dict[str, Any]]] = {
    "attention": (PLAIN, {}),
    "every linear layer": (PLAIN, {"target_modules": "all-linear"}),
    "rank-stabilized": (PLAIN, {"use_rslora": True, "r": 8}),
    "patterns": (PLAIN, {"target_modules": ATTENTION + MLP, **PATTERNS}),
    "rank-stabilized patterns": (PLAIN, {"target_modules": ATTENTION + MLP, "use_rslora": True, **PATTERNS}),
    "one layer": (PLAIN, {"target_modules": ["v_proj"], "layers_to_transform": 1}),
    "the head": (PLAIN, {"target_modules": ["q_proj", "lm_head"]}),
    "a tied head": (BIASED, {"target_modules": ["k_proj", "lm_head"]}),
    "dora": (PLAIN, {"use_dora": True, "target_modules": "all-linear"}),
    "dora with biases in the model": (BIASED, {"use_dora": True}),
    "dora with patterns": (PLAIN, {"use_dora": True, "target_modules": ATTENTION + MLP, **PATTERNS}),
    "dora of the head": (PLAIN, {"use_dora": True, "target_modules": ["up_proj", "lm_head"]}),
    "biases of adapted layers": (BIASED, {"bias": "lora_only", "target_modules": ["q_proj", "up_proj"]}),
    "all biases": (BIASED, {"bias": "all", "target_modules": ["q_proj"]}),
    "dora and all biases": (BIASED, {"bias": "all", "use_dora": True}),
}


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients_equal_pefts(tmp_path: Path, name: str, checkpointing: str) -> None:
    base, options = VARIANTS[name]
    folder = peft_folder(base, tmp_path / "adapter", **options)
    oracle = their_network(base, folder, bias=options.get("bias", "none"))
    batch = batch_of(base)
    model = copy.deepcopy(base)
    checkpoint_activations(model, checkpointing)
    adapters = load_adapters(folder, model)
    torch.testing.assert_close(
        our_logits(model, adapters, batch), their_logits(oracle, batch), atol=3e-5, rtol=0
    )
    loss, expected = our_loss(model, adapters, batch), their_loss(oracle, batch)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    theirs = by_our_names(gradients(expected, oracle.named_parameters()))
    assert_near(gradients(loss, adapters.named_parameters()), theirs, relative=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("base", [PLAIN, BIASED], ids=["untied", "tied with biases"])
def test_gradients_of_a_whole_model_equal_transformers(base: Llama, checkpointing: str) -> None:
    model, oracle = copy.deepcopy(base), transformers_llama(base)
    checkpoint_activations(model, checkpointing)
    parameters = full(model)
    assert sum(parameter.numel() for parameter in parameters.values()) == base.config.num_parameters
    batch = batch_of(base)
    ours = gradients(our_loss(model, None, batch), parameters.items())
    theirs = gradients(their_loss(oracle, batch), oracle.requires_grad_(True).named_parameters())
    assert_near(ours, theirs, relative=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_peft_loads_what_is_written_and_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    base, options = VARIANTS[name]
    adapters = load_adapters(peft_folder(base, tmp_path / "theirs", **options), base)
    save_adapter(tmp_path / "ours", adapters, "org/name", "full precision")
    batch = batch_of(base)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        oracle = their_network(base, tmp_path / "ours")
    said = [str(warning.message) for warning in caught if "peft" in warning.filename]
    assert [text for text in said if "tie_word_embeddings" not in text] == []  # which no file could prevent
    with torch.no_grad():
        ours, theirs = our_logits(base, adapters, batch), their_logits(oracle, batch)
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=0)
    again = load_adapters(tmp_path / "ours", base)
    for (name, ours), (other, expected) in zip(
        again.named_parameters(), adapters.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, expected)
