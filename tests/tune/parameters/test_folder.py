"""Adapters to folders and back: what is written, what is refused, and that the engine serves the same."""

from __future__ import annotations

import json
import resource
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from corral.checkpoints.adapter_config import REFUSED
from corral.checkpoints.adapter_writer import read_base_weights, targets_of
from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.errors import CheckpointError
from corral.llm import LLM
from corral.tune.config import ParametersConfig
from corral.tune.errors import TuneError
from corral.tune.network import Network
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.folder import adapters_for, load_adapters, save_adapter
from tests.checkpoints.writers import write_chat_model
from tests.kernels.networks import needs_native
from tests.random_models import SMALL, random_model
from tests.tune.parameters.training import batch_of, our_loss, peft_folder

MODEL = random_model(SMALL)
K = "model.layers.0.self_attn.k_proj"


def trained(model: Any = MODEL, steps: int = 3, lr: float = 0.1, **settings: Any) -> Adapters:
    """Adapters after some steps of plain gradient descent."""
    adapters = Adapters.new(model, ParametersConfig(**settings), torch.Generator().manual_seed(0))
    for step in range(steps):
        adapters.zero_grad()
        our_loss(model, adapters, batch_of(model, step)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in adapters.parameters():
                if parameter.grad is not None:
                    parameter.sub_(lr * parameter.grad / (parameter.grad.norm() + 1e-9))
    return adapters


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_folder_says_all_that_peft_has_fields_for(home: Path) -> None:
    adapters = trained(
        method="dora",
        rank=4,
        alpha=6.0,
        dropout=0.25,
        rslora=True,
        targets=["q_proj", "model.layers.1.mlp.up_proj"],
        rank_pattern={"up_proj": 2},
        alpha_pattern={"layers.0.self_attn.q_proj": 2.5},
    )
    save_adapter(home / "adapter", adapters, "org/name", "nf4")
    assert sorted(file.name for file in (home / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "corral.json",
    ]
    written = json.loads((home / "adapter" / "adapter_config.json").read_text())
    assert written.keys() <= {field.name for field in fields(LoraConfig)}
    assert not any(written.get(name) for name in REFUSED if name != "use_dora")
    read = LoraConfig.from_pretrained(str(home / "adapter"))
    expected = {
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.25,
        "use_rslora": True,
        "use_dora": True,
        "bias": "none",
        "target_modules": {"q_proj", "model.layers.1.mlp.up_proj"},
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 2.5},
        "base_model_name_or_path": "org/name",
        "task_type": "CAUSAL_LM",
        "peft_type": "LORA",
        "inference_mode": True,
    }
    assert {name: getattr(read, name) for name in expected} == expected
    assert read_base_weights(home / "adapter") == "nf4"
    tensors = load_file(home / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].shape == (2, 64)
    assert (home / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o444 == 0o444


def test_targets_are_short_names_where_these_are_enough() -> None:
    linears = [f"model.layers.{i}.self_attn.{leaf}_proj" for i in (0, 1) for leaf in "qkv"] + ["lm_head"]
    assert targets_of([name for name in linears if name != "lm_head"], linears) == [
        "k_proj",
        "q_proj",
        "v_proj",
    ]
    some = [*linears[:3], linears[5], "lm_head"]
    assert targets_of(some, linears) == ["lm_head", "v_proj", linears[1], linears[0]]


def test_a_folder_that_holds_something_is_left_alone(home: Path) -> None:
    (home / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder; choose another"):
        save_adapter(home, trained(steps=0))
    assert [file.name for file in home.iterdir()] == ["notes.txt"]


def test_a_disk_that_is_full_leaves_no_folder_and_says_so(home: Path) -> None:
    adapters = trained(steps=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"adapter could not be written: .*[Ff]ile too large"):
            save_adapter(home / "adapter", adapters)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_training_goes_on_from_a_folder_as_if_it_had_not_stopped(home: Path, method: Any) -> None:
    adapters = trained(method=method, rank=4, rank_pattern={"v_proj": 3})
    save_adapter(home / "adapter", adapters)
    config = ParametersConfig(adapter=str(home / "adapter"), dropout=0.5)
    again = adapters_for(MODEL, config, torch.Generator())
    assert again.config.dropout == 0.5
    assert again.config.rank_pattern == adapters.config.rank_pattern
    batch = batch_of(MODEL, 9)
    assert torch.equal(our_loss(MODEL, again.eval(), batch), our_loss(MODEL, adapters, batch))
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 8}, "parameters.rank is 8, but the adapter in"),
        ({"alpha": 4.0}, "parameters.alpha is 4.0, but the adapter in"),
        ({"method": "dora"}, "parameters.method is 'dora', but the adapter in"),
        ({"bias": "all"}, "parameters.bias is 'all', but the adapter in"),
        ({"rslora": True}, "parameters.rslora is True, but the adapter in"),
        ({"rank_pattern": {"q_proj": 2}}, "parameters.rank_pattern is {'q_proj': 2}, but the adapter in"),
        ({"targets": ["q_proj"]}, "parameters.targets is ['q_proj'], but the adapter in"),
    ],
)
def test_settings_that_the_folder_contradicts_are_refused(
    home: Path, settings: dict[str, Any], sentence: str
) -> None:
    peft_folder(MODEL, home / "adapter")
    with pytest.raises(TuneError) as refusal:
        adapters_for(MODEL, ParametersConfig(adapter=str(home / "adapter"), **settings), torch.Generator())
    assert sentence in str(refusal.value)
    assert str(home) in str(refusal.value)
    same = ParametersConfig(
        adapter=str(home / "adapter"), rank=4, targets=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    adapters_for(MODEL, same, torch.Generator())


@pytest.mark.parametrize(
    ("options", "spoil", "sentence"),
    [
        (
            {"use_dora": True},
            ("lora_magnitude_vector", None),
            "lacks lora_magnitude_vector of model.layers.0",
        ),
        (
            {"use_dora": True},
            ("lora_magnitude_vector", torch.ones(3)),
            f"lora_magnitude_vector of {K} has shape [3]; this model's layer needs [32]",
        ),
        (
            {"use_dora": True},
            ("lora_magnitude_vector", torch.full((32,), float("nan"))),
            f"lora_magnitude_vector of {K} holds numbers that are not finite",
        ),
        (
            {"bias": "all"},
            ("base_layer.bias", torch.ones(32)),
            f"has a bias of {K}, which is no linear layer with a bias in this model",
        ),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(
    home: Path, options: dict[str, Any], spoil: tuple[str, Any], sentence: str
) -> None:
    folder = peft_folder(MODEL, home / "adapter", **options)
    file = folder / "adapter_model.safetensors"
    tensors, name = load_file(file), f"base_model.model.{K}.{spoil[0]}"
    tensors.pop(name, None)
    save_file(tensors if spoil[1] is None else {**tensors, name: spoil[1]}, file)
    with pytest.raises(CheckpointError) as refusal:
        load_adapters(folder, MODEL)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("settings", [{"method": "dora"}, {"bias": "all"}], ids=["dora", "biases"])
def test_what_the_engine_cannot_add_it_refuses_with_the_way_out(home: Path, settings: dict[str, Any]) -> None:
    biased = random_model(replace(SMALL, attention_bias=True))
    save_adapter(home / "adapter", trained(biased, steps=0, **settings))
    with pytest.raises(CheckpointError, match=r"merge the adapter into its model \(`corral merge`\)"):
        LLM(str(home), adapters={"x": home / "adapter"})


@pytest.mark.parametrize(
    "options",
    [
        {"kernels": "torch"},
        pytest.param({"kernels": "native", "exact_activations": True}, marks=needs_native),
        {"kernels": "torch", "quantize": "nf4"},
    ],
    ids=["torch", "native", "torch over nf4"],
)
def test_served_log_probabilities_are_the_trainers(home: Path, options: dict[str, Any]) -> None:
    write_chat_model(home / "model")
    base = options.get("quantize")
    model = load_model(open_checkpoint(home / "model"), torch.float32, quantize=base)
    adapters = trained(model, rank=4, targets=["all-linear", "lm_head"], base=base, lr=0.5)
    save_adapter(home / "adapter", adapters)
    batch = batch_of(model, 7)
    start, end = batch.bounds[0], batch.bounds[1]
    rows = batch.rows[batch.owners == 0]
    with torch.no_grad():
        expected = Network(model, adapters, adapts_head=True).token_logprobs(batch)[: len(rows)]
        before = Network(model).token_logprobs(batch)[: len(rows)]
    assert (expected - before).abs().max() > 0.05, "training changed something"
    llm = LLM(str(home / "model"), dtype="float32", threads=1, adapters={"mine": home / "adapter"}, **options)
    with llm:
        tokens = batch.tokens[start:end].tolist()
        (scored,) = llm.score([tokens], adapter="mine")
    served = torch.tensor(scored.token_logprobs)[rows]
    torch.testing.assert_close(served, expected, atol=2e-4, rtol=0)
