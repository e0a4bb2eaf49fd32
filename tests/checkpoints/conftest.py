"""Caches of their own and a Hub on the loopback, for tests of names that become files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.fake_hub import FakeHub

_SETTINGS = (
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)


class Recorder:
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[str, int, int | None]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def progress(self, description: str, done: int, total: int | None) -> None:
        self.steps.append((description, done, total))


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with empty caches, and an environment that says nothing else about the Hub."""
    for name in _SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path / "corral"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path


@pytest.fixture
def hub(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running fake Hub that `HF_ENDPOINT` points to."""
    del caches
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def tiny() -> dict[str, bytes]:
    """The files of a repository: a model in one safetensors file, and what a loader has no use for."""
    return {
        "config.json": b'{"model_type": "llama"}',
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": bytes(range(256)) * 400,
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "original/consolidated.00.pth": b"zip",
        "original/params.json": b"{}",
        "README.md": b"# tiny",
    }


@pytest.fixture
def sharded(tiny: dict[str, bytes]) -> dict[str, bytes]:
    """The same model in two shards with their index, beside a third file that the index does not name."""
    shards = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    del tiny["model.safetensors"]
    return {
        **tiny,
        "model.safetensors.index.json": json.dumps(index).encode(),
        shards[0]: b"first" * 100,
        shards[1]: b"second" * 100,
        "consolidated.safetensors": b"the same once more",
    }
