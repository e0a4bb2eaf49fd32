"""From a Hub's name to an answer: real requests to a real server on the loopback, a real model's files."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from corral.cli.main import run
from tests.checkpoints.fake_hub import FakeHub
from tests.checkpoints.writers import write_chat_model, write_gguf, write_meta
from tests.random_models import SMALL_CHAT, random_model


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def chat_model(tmp_path: Path) -> dict[str, bytes]:
    """A small chat model in three shards."""
    write_chat_model(tmp_path / "made", shards=3)
    return files_of(tmp_path / "made")


def test_a_model_on_the_hub_answers_and_then_again_without_the_hub(
    hub: FakeHub,
    chat_model: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    hub.add_repo("org/tiny", chat_model)
    arguments = ["chat", "org/tiny", "-p", "hi", "--max-tokens", "3", "--dtype", "float32"]
    assert run(arguments) == 0
    first = capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(arguments) == 0
    assert capsys.readouterr().out == first


def test_a_plan_fetches_the_configuration_alone(
    hub: FakeHub, chat_model: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo("org/tiny", chat_model)
    assert run(["plan", "org/tiny", "--context", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["parameters"] == SMALL_CHAT.num_parameters
    assert not [line for line in hub.log if "safetensors" in line]


def test_a_plan_of_metas_format_fetches_params_json_alone(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_meta(random_model(SMALL_CHAT), tmp_path / "meta", 2)
    hub.add_repo("org/meta", {f"original/{name}": data for name, data in files_of(tmp_path / "meta").items()})
    assert run(["plan", "org/meta", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["parameters"] == SMALL_CHAT.num_parameters
    assert not [line for line in hub.log if "consolidated" in line]


def test_one_file_of_a_gguf_repository_is_chosen_by_name(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(random_model(SMALL_CHAT), tmp_path / "f16.gguf", gguf.GGMLQuantizationType.F16)
    write_gguf(random_model(SMALL_CHAT), tmp_path / "q8.gguf", gguf.GGMLQuantizationType.Q8_0)
    hub.add_repo("org/gguf", {name: (tmp_path / name).read_bytes() for name in ("f16.gguf", "q8.gguf")})
    assert run(["info", "org/gguf"]) == 1
    assert "Choose one of f16.gguf, q8.gguf" in capsys.readouterr().err
    assert run(["info", "org/gguf:q8.gguf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored_as"]["Q8_0"] == 9
