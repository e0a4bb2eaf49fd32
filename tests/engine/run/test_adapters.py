"""Adapters beside the model: equal to PEFT's, many in one batch, and out of everyone else's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from corral.engine.run.adapters import AdapterSet
from corral.errors import CheckpointError, RequestError
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from corral.model.project import plain
from tests.peft_adapters import ATTENTION, write_adapter
from tests.random_models import SMALL, random_model

MODEL = random_model(SMALL)
TIED = random_model(replace(SMALL, tie_word_embeddings=True, attention_bias=True), seed=1)
MLP = ["gate_proj", "up_proj", "down_proj"]
PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 2, r".*\.o_proj": 7, "^model.layers.0.mlp.*": 1},
    "alpha_pattern": {"q_proj": 3, "layers.1.self_attn.q_proj": 100, "^model.*down_proj": 0.5},
}
VARIANTS: dict[str, tuple[Llama, dict[str, Any]]] = {
    "attention": (MODEL, {}),
    "rank-stabilized": (MODEL, {"use_rslora": True, "r": 8}),
    "every linear layer": (MODEL, {"target_modules": "all-linear"}),
    "patterns": (MODEL, {"target_modules": ATTENTION + MLP, **PATTERNS}),
    "rank-stabilized patterns": (MODEL, {"target_modules": ATTENTION + MLP, "use_rslora": True, **PATTERNS}),
    "one layer by its number": (MODEL, {"target_modules": ["v_proj"], "layers_to_transform": 1}),
    "layers by a regular expression": (MODEL, {"target_modules": r".*layers\.0\.mlp\.(up|down)_proj"}),
    "the head": (MODEL, {"target_modules": ["q_proj", "lm_head"]}),
    "a tied head and biases": (TIED, {"target_modules": ["k_proj", "lm_head"]}),
}


def tokens_of(seed: int, length: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def logits_of(adapters: AdapterSet, model: Llama, batch: Sequence[tuple[str | None, Tensor]]) -> list[Tensor]:
    """The logits of every token of sequences that lie side by side."""
    lengths = [len(tokens) for _, tokens in batch]
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    project = adapters.project((name, len(tokens)) for name, tokens in batch)
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = model(torch.cat([tokens for _, tokens in batch]), positions, PackedCausal(bounds), project)
    return list(torch.split(model.logits(hidden, project), lengths))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters that differ in rank and in the layers they change."""
    root = tmp_path_factory.mktemp("adapters")
    write_adapter(MODEL, root / "a", seed=1)
    write_adapter(MODEL, root / "b", seed=2, r=2, target_modules="all-linear")
    write_adapter(MODEL, root / "c", seed=3, r=16, target_modules=["down_proj", "lm_head"])
    return {name: root / name for name in "abc"}


@pytest.fixture
def adapters(folders: dict[str, Path]) -> AdapterSet:
    loaded = AdapterSet(MODEL)
    for name, folder in folders.items():
        loaded.load(name, folder)
    return loaded


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_pefts(tmp_path: Path, name: str) -> None:
    model, options = VARIANTS[name]
    oracle = write_adapter(model, tmp_path, **options)
    adapters = AdapterSet(model)
    adapters.load("x", tmp_path)
    tokens = tokens_of(0, 30)
    with torch.no_grad():
        expected = oracle(tokens[None]).logits[0]
        with oracle.disable_adapter():
            base = oracle(tokens[None]).logits[0]
    assert (expected - base).abs().max() > 0.1, "the adapter changes something"
    torch.testing.assert_close(logits_of(adapters, model, [("x", tokens)])[0], expected, atol=3e-5, rtol=0)
    torch.testing.assert_close(logits_of(adapters, model, [(None, tokens)])[0], base, atol=3e-5, rtol=0)


def test_bfloat16_logits_are_as_near_to_float32_as_pefts(tmp_path: Path) -> None:
    oracle = write_adapter(MODEL, tmp_path, target_modules="all-linear")
    small = Llama(SMALL).bfloat16().requires_grad_(False)
    small.load_state_dict(MODEL.state_dict())
    adapters = AdapterSet(small)
    adapters.load("x", tmp_path)
    tokens = tokens_of(0, 60)
    with torch.no_grad():
        exact = oracle(tokens[None]).logits[0]
        for (
            name,
            parameter,
        ) in oracle.named_parameters():  # PEFT keeps the adapter in float32
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        theirs = (oracle(tokens[None]).logits[0].float() - exact).norm()
    ours = (logits_of(adapters, small, [("x", tokens)])[0].float() - exact).norm()
    assert ours < 1.25 * theirs


def test_many_adapters_in_one_batch_give_each_what_it_gets_alone(adapters: AdapterSet) -> None:
    names = ["a", None, "b", "a", "c", None, "c", "b"]  # apart, side by side, and none
    batch = [(name, tokens_of(i, 1 + 3 * (i % 4))) for i, name in enumerate(names)]
    together = logits_of(adapters, MODEL, batch)
    for sequence, logits in zip(batch, together, strict=True):
        torch.testing.assert_close(logits, logits_of(adapters, MODEL, [sequence])[0], atol=2e-5, rtol=0)
    for name in "abc":
        other = [(name, tokens) for _, tokens in batch]
        assert not torch.allclose(logits_of(adapters, MODEL, other)[1], together[1], atol=1e-2)


def test_rows_without_an_adapter_are_bit_for_bit_those_of_a_batch_without_adapters(
    adapters: AdapterSet,
) -> None:
    batch = [(name, tokens_of(i, 5)) for i, name in enumerate(["a", None, "b", None, "a"])]
    with_adapters = logits_of(adapters, MODEL, batch)
    without = logits_of(adapters, MODEL, [(None, tokens) for _, tokens in batch])
    for (name, _), ours, theirs in zip(batch, with_adapters, without, strict=True):
        assert torch.equal(ours, theirs) == (name is None)


def test_a_batch_without_adapters_is_projected_plainly(adapters: AdapterSet) -> None:
    assert adapters.project([(None, 4), (None, 1), ("a", 0)]) is plain
    assert AdapterSet(MODEL).project([]) is plain


def test_one_is_loaded_and_unloaded_while_another_is_used(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(MODEL)
    adapters.load("a", folders["a"])
    tokens = tokens_of(0, 8)
    before = logits_of(adapters, MODEL, [("a", tokens)])[0]
    running = adapters.project([("a", 8)])
    adapters.load("b", folders["b"])
    assert list(adapters.names) == ["a", "b"]
    assert torch.equal(logits_of(adapters, MODEL, [("a", tokens)])[0], before)
    adapters.unload("a")
    assert list(adapters.names) == ["b"]
    hidden = MODEL(tokens, torch.arange(8), PackedCausal([0, 8]), running)  # goes on as it began
    assert torch.equal(MODEL.logits(hidden, running), before)
    with pytest.raises(RequestError, match=r"adapter 'a' is not loaded; loaded are: 'b'"):
        adapters.project([("a", 8)])


def test_a_loaded_adapter_does_not_change_with_its_file(tmp_path: Path) -> None:
    write_adapter(MODEL, tmp_path, seed=1)
    adapters = AdapterSet(MODEL)
    adapters.load("x", tmp_path)
    tokens = tokens_of(0, 8)
    before = logits_of(adapters, MODEL, [("x", tokens)])[0]
    file = tmp_path / "adapter_model.safetensors"
    with file.open("r+b") as stream:  # in place, as a careless copy does
        stream.seek(file.stat().st_size // 2)
        stream.write(bytes(file.stat().st_size // 2))
    assert torch.equal(logits_of(adapters, MODEL, [("x", tokens)])[0], before)


def test_every_load_has_a_salt_of_its_own(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(MODEL)
    salts = {adapters.salt(None)}
    assert salts == {b""}
    for _ in range(3):
        adapters.load("x", folders["a"])
        adapters.load("y", folders["a"])
        salts |= {adapters.salt("x"), adapters.salt("y")}
        assert adapters.salt("x") == adapters.salt("x")
        adapters.unload("x")
        adapters.unload("y")
    assert len(salts) == 7


def test_the_bytes_of_what_is_loaded_are_counted(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(MODEL)
    adapters.load("a", folders["a"])
    square, narrow = 2 * 64 * 4, (64 + 32) * 4  # numbers in a pair of rank 4
    assert adapters.num_bytes == 2 * (2 * square + 2 * narrow) * 4
    adapters.unload("a")
    assert adapters.num_bytes == 0


@pytest.mark.parametrize("name", ["", " \n", None, 3])
def test_a_name_must_be_a_text(folders: dict[str, Path], name: Any) -> None:
    adapters = AdapterSet(MODEL)
    with pytest.raises(RequestError, match=r"adapter name is .* must be a text that is not empty"):
        adapters.load(name, folders["a"])
    assert adapters.names == ()


def test_a_name_is_taken_until_it_is_unloaded(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="adapter 'a' is loaded already"):
        adapters.load("a", folders["b"])
    adapters.unload("a")
    with pytest.raises(RequestError, match=r"adapter 'a' is not loaded; loaded are: 'b', 'c'"):
        adapters.unload("a")
    with pytest.raises(RequestError, match="adapter 'a' is not loaded"):
        adapters.salt("a")
    adapters.load("a", folders["b"])


def test_a_refused_adapter_leaves_the_set_as_it_was(tmp_path: Path, folders: dict[str, Path]) -> None:
    adapters = AdapterSet(MODEL)
    write_adapter(MODEL, tmp_path, use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora is True"):
        adapters.load("x", tmp_path)
    write_adapter(MODEL, tmp_path, lora_alpha=1e29)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor * 1e12 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"k_proj has numbers or a scale .* too large"):
        adapters.load("x", tmp_path)
    assert adapters.names == ()
    assert adapters.num_bytes == 0
    adapters.load("x", folders["a"])
