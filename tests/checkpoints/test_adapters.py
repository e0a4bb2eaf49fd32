"""What is read from a PEFT folder, and what is refused in one sentence that names the field or module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from corral.checkpoints.adapter_config import HARMLESS, REFUSED, USED, AdapterConfig
from corral.checkpoints.adapter_reader import read_adapter
from corral.errors import CheckpointError
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL, random_model

CONFIG = replace(SMALL, vocab_size=96, hidden_size=32, head_dim=8)
MODEL = random_model(CONFIG)
PREFIX = "base_model.model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
Q = "model.layers.0.self_attn.q_proj"
Q_A, Q_B = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(MODEL, folder, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def configure(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / CONFIG_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def change_tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / WEIGHTS_FILE
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file)

    return damage


def put(name: str, tensor: Tensor) -> Damage:
    return change_tensors(lambda tensors: tensors.update({name: tensor}))


def as_pickle(content: Any) -> Damage:
    def damage(folder: Path) -> None:
        remove(WEIGHTS_FILE)(folder)
        torch.save(content, folder / "adapter_model.bin")

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def spoil(half: str, value: float) -> Damage:
    return change_tensors(lambda tensors: tensors[half].view(-1)[7:8].fill_(value))


class Unpicklable:
    """What torch.load with weights_only must not build."""


# What is done to the folder, and what the sentence must hold.
BAD: dict[str, tuple[Damage, str]] = {
    "another method": (configure(peft_type="IA3"), "peft_type is 'IA3'"),
    "no method": (configure(peft_type=None), "peft_type is None"),
    "biases": (configure(bias="lora_only"), "bias is 'lora_only'"),
    "pissa": (configure(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
    "loftq": (configure(init_lora_weights="loftq"), "init_lora_weights is 'loftq'"),
    "an unknown switch": (configure(use_tomorrows_lora=True), "use_tomorrows_lora is True"),
    "unknown settings": (configure(tomorrow={"heads": 2}), "tomorrow is {'heads': 2}"),
    "rank of zero": (configure(r=0), "r is 0; it must be a whole number"),
    "rank as text": (configure(r="4"), "r is '4'; it must be a whole number"),
    "rank as truth": (configure(r=True), "r is True; it must be a whole number"),
    "rank of other weights": (configure(r=8), "has rank 4, but r and rank_pattern in"),
    "alpha as text": (configure(lora_alpha="8"), "lora_alpha is '8'; it must be a number"),
    "alpha not a number": (configure(lora_alpha=float("nan")), "lora_alpha is nan"),
    "alpha without end": (configure(lora_alpha=10**400), "lora_alpha is 1000"),
    "rslora as text": (configure(use_rslora="yes"), "use_rslora is 'yes'; it must be true or false"),
    "ranks as a list": (configure(rank_pattern=["q_proj"]), "rank_pattern is ['q_proj']"),
    "rank in a pattern": (configure(rank_pattern={"q_proj": 2.5}), "rank_pattern['q_proj'] is 2.5"),
    "alpha in a pattern": (configure(alpha_pattern={"q_proj": None}), "alpha_pattern['q_proj'] is None"),
    "no pattern": (configure(alpha_pattern={"(": 2}), "alpha_pattern has the key '(', which is no regular"),
    "config as a list": (write(CONFIG_FILE, b"[]"), "must hold a JSON object"),
    "config cut short": (write(CONFIG_FILE, b'{"r": 4'), "adapter_config.json is not valid JSON"),
    "config without end": (write(CONFIG_FILE, b"[" * 10**5), "is not valid JSON"),
    "no config": (remove(CONFIG_FILE), "adapter_config.json does not exist"),
    "no weights": (remove(WEIGHTS_FILE), "holds no weights: neither"),
    "weights cut short": (write(WEIGHTS_FILE, b"\x10"), "truncated, damaged"),
    "an empty table": (change_tensors(dict.clear), "holds no LoRA weights"),
    "half of a pair": (change_tensors(lambda tensors: tensors.pop(Q_B)), f"lacks lora_B of {Q}"),
    "the other half": (change_tensors(lambda tensors: tensors.pop(Q_A)), f"lacks lora_A of {Q}"),
    "a half twice": (put(f"{Q}.lora_A.default.weight", torch.ones(4, 32)), f"holds lora_A of {Q} twice"),
    "a deeper model": (
        put(f"{PREFIX}model.layers.2.mlp.up_proj.lora_A.weight", torch.ones(4, 32)),
        "model.layers.2.mlp.up_proj, which is no linear layer of this model",
    ),
    "a layer that is not linear": (
        put(f"{PREFIX}model.norm.lora_A.weight", torch.ones(4, 32)),
        "model.norm, which is no linear layer",
    ),
    "a wider model": (
        put(Q_A, torch.ones(4, 64)),
        f"{Q} has lora_A [4, 64] and lora_B [32, 4]; this model's layer is [32, 32]",
    ),
    "halves of two ranks": (put(Q_B, torch.ones(32, 2)), f"{Q} has lora_A [4, 32] and lora_B [32, 2]"),
    "a half with one dimension": (put(Q_A, torch.ones(32)), f"{Q} has lora_A [32]"),
    "no rows": (put(Q_A, torch.ones(0, 32)), f"{Q} has lora_A [0, 32]"),
    "whole numbers": (put(Q_A, torch.ones(4, 32, dtype=torch.int32)), f"lora_A of {Q} is of type int32"),
    "not a number": (spoil(Q_A, float("nan")), f"lora_A of {Q} holds numbers that are not finite"),
    "infinity": (spoil(Q_B, float("inf")), f"lora_B of {Q} holds numbers that are not finite"),
    "an adapted embedding": (
        put(f"{PREFIX}model.embed_tokens.lora_embedding_A", torch.ones(4, 96)),
        "model.embed_tokens.lora_embedding_A: Corral adapts linear layers, not the embedding",
    ),
    "magnitudes": (put(f"{PREFIX}{Q}.lora_magnitude_vector", torch.ones(32)), "vector, which is no"),
    "a bias of a half": (put(f"{PREFIX}{Q}.lora_B.bias", torch.ones(32)), f"{Q}.lora_B.bias, which is no"),
    "a whole layer": (put(f"{PREFIX}{Q}.weight", torch.ones(32, 32)), f"{Q}.weight, which is no LoRA weight"),
    "another head": (put(f"{PREFIX}lm_head.weight", torch.ones(96, 32)), "lm_head.weight [96, 32], which"),
    "more tokens": (
        put(f"{PREFIX}model.embed_tokens.weight", torch.ones(97, 32)),
        "model.embed_tokens.weight [97, 32], which differs from this model's [96, 32]",
    ),
    "a pickle with code": (as_pickle({Q_A: Unpicklable()}), "damaged, or holds more than tensors"),
    "a pickle of numbers": (as_pickle({Q_A: 3}), "which is no plain tensor"),
    "a pickle without names": (as_pickle({3: torch.ones(1)}), "holds 3, which is no plain tensor"),
    "a pickle without weights": (as_pickle({Q_A: torch.ones(1, device="meta")}), "which is no plain tensor"),
    "a pickle without a table": (as_pickle([1, 2]), "adapter_model.bin is truncated, damaged"),
    **{
        f"{name} set": (configure(**{name: value}), f"{name} is {value!r}: {REFUSED[name][0]}")
        for name, value in {name: {"on": 1} if "config" in name else True for name in REFUSED}.items()
    },
}


@pytest.mark.parametrize("name", BAD)
def test_what_plain_lora_on_this_model_is_not_is_refused(folder: Path, name: str) -> None:
    damage, sentence = BAD[name]
    damage(folder)
    with pytest.raises(CheckpointError) as refusal:
        read_adapter(folder, MODEL)
    assert sentence in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_every_field_of_pefts_configuration_is_used_or_refused_or_known_to_be_harmless() -> None:
    assert {field.name for field in fields(LoraConfig)} == USED | REFUSED.keys() | HARMLESS
    assert not USED & REFUSED.keys()
    assert not HARMLESS & (USED | REFUSED.keys())


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "EVA", "orthogonal", "mica"])
def test_a_start_that_leaves_the_model_alone_is_accepted(folder: Path, start: object) -> None:
    configure(init_lora_weights=start, layers_to_transform=[0, 1], noted="by a tool")(folder)
    assert len(read_adapter(folder, MODEL)) == 4


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix(PREFIX),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix(PREFIX).replace(".weight", ".default.weight"),
    ],
    ids=["without prefix", "with the name default", "both"],
)
def test_the_names_that_peft_has_used_are_read(
    folder: Path, saved: Path, rename: Callable[[str], str]
) -> None:
    file = folder / WEIGHTS_FILE
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)
    assert_equal(folder, saved)


def test_a_pickle_is_read_like_safetensors(folder: Path, saved: Path) -> None:
    as_pickle(load_file(folder / WEIGHTS_FILE))(folder)
    assert_equal(folder, saved)


def test_a_copy_of_the_models_own_head_may_come_along(folder: Path, saved: Path) -> None:
    put(f"{PREFIX}lm_head.base_layer.weight", MODEL.lm_head.weight.clone())(folder)
    put(f"{PREFIX}model.embed_tokens.weight", MODEL.model.embed_tokens.weight.bfloat16())(folder)
    assert_equal(folder, saved)


def assert_equal(folder: Path, other: Path) -> None:
    read, expected = read_adapter(folder, MODEL), read_adapter(other, MODEL)
    assert read.keys() == expected.keys()
    for module, added in expected.items():
        assert torch.equal(read[module].a, added.a)
        assert torch.equal(read[module].b, added.b)
        assert read[module].scale == added.scale


def test_an_adapter_of_another_model_is_refused_by_name(saved: Path) -> None:
    wider = random_model(replace(CONFIG, hidden_size=64))
    with pytest.raises(CheckpointError, match=r"down_proj has lora_A .* and needs .* made for another model"):
        read_adapter(saved, wider)


PATTERNS = ("q_proj", "layers.1.self_attn.q_proj", "^model.layers.0.*", r".*\.(k|v)_proj", "proj", "up_proj")
MODULES = [name for name, _ in MODEL.named_modules() if name.endswith("_proj")] + ["lm_head"]


@given(
    ranks=st.lists(st.sampled_from(PATTERNS), unique=True),
    alphas=st.lists(st.sampled_from(PATTERNS), unique=True),
    rslora=st.booleans(),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranks_and_scales_follow_patterns_as_in_peft(
    folder: Path, ranks: list[str], alphas: list[str], rslora: bool
) -> None:
    rank_pattern = {key: 10 + i for i, key in enumerate(ranks)}
    alpha_pattern = {key: 0.5 + i for i, key in enumerate(alphas)}
    configure(rank_pattern=rank_pattern, alpha_pattern=alpha_pattern, use_rslora=rslora)(folder)
    config = AdapterConfig.read(folder / CONFIG_FILE)
    for module in MODULES:
        rank = rank_pattern.get(get_pattern_key(list(rank_pattern), module), 4)
        alpha = alpha_pattern.get(get_pattern_key(list(alpha_pattern), module), 8)
        assert config.rank_of(module) == rank
        assert config.scale_of(module) == pytest.approx(alpha / (rank**0.5 if rslora else rank))


@given(data=st.data(), pickled=st.booleans())
@example(data=None, pickled=True)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_bytes_are_refused_or_harmless_but_never_a_traceback(
    saved: Path, tmp_path: Path, data: st.DataObject | None, pickled: bool
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "damaged", dirs_exist_ok=True))
    file = folder / WEIGHTS_FILE
    if pickled:
        as_pickle(load_file(file))(folder)
        file = folder / "adapter_model.bin"
    content = bytearray(file.read_bytes())
    if data is None:
        content = content[: len(content) // 2]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content) - 1, 2000)))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        added = read_adapter(folder, MODEL)
        assert data is not None
        assert all(torch.isfinite(pair.a).all() and torch.isfinite(pair.b).all() for pair in added.values())
    except CheckpointError as refusal:
        sentence = str(refusal)
        assert sentence.startswith(str(folder))
    finally:
        shutil.rmtree(folder)
