"""Prompt formats that dialogs are written in, with their tokenizers; rows in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from corral.checkpoints.source import open_checkpoint
from corral.text.control_tokens import END_OF_TURN
from corral.text.llama3 import Llama3Renderer
from corral.text.llama3_meta import Llama3MetaRenderer
from corral.text.prompt_format import choose_renderer
from corral.text.rendered import Renderer
from corral.text.tokenizer import Tokenizer
from corral.tune.config import DataConfig
from corral.tune.data.prepare import Prepared, prepare
from tests.checkpoints.fake_hub import FakeHub

FAMILIES = ("llama-3", "llama-3.1", "llama-3.2", "llama-3.3")
NAMES = (*FAMILIES, *(f"{name}-meta" for name in FAMILIES), "chatml")

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class PromptFormat:
    """A prompt format, its tokenizer, and what ends a turn in it."""

    name: str
    tokenizer: Tokenizer
    renderer: Renderer
    end: str


@pytest.fixture(scope="session")
def prompt_format(llama_models_folder: Path, smollm2_path: Path) -> Callable[[str], PromptFormat]:
    """A prompt format by its name: the Llama 3 families in both profiles, and SmolLM2's ChatML."""
    file = llama_models_folder / "llama3" / "tokenizer.model"
    tokenizers: dict[str, Tokenizer] = {}

    @cache
    def made(name: str) -> PromptFormat:
        if name == "chatml":
            checkpoint = open_checkpoint(smollm2_path)
            tokenizer = checkpoint.tokenizer()
            renderer = choose_renderer(tokenizer, chat_template=checkpoint.chat_template, family=None)
            return PromptFormat(name, tokenizer, renderer, "<|im_end|>")
        family = name.removesuffix("-meta")
        if family not in tokenizers:
            tokenizers[family] = Tokenizer.from_meta(file, family)
        kind = Llama3MetaRenderer if name.endswith("-meta") else Llama3Renderer
        return PromptFormat(name, tokenizers[family], kind(tokenizers[family], family), END_OF_TURN)

    return made


@pytest.fixture
def chatml(prompt_format: Callable[[str], PromptFormat]) -> PromptFormat:
    return prompt_format("chatml")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON lines; gives the file's path."""

    def write(rows: Rows, name: str = "rows.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def made_of(write_rows: Callable[..., str], chatml: PromptFormat, tmp_path: Path) -> Callable[..., Prepared]:
    """What rows become in ChatML, with settings of the data."""

    def made(rows: Rows, kind: str = "sft", **settings: Any) -> Prepared:
        config = DataConfig(train=write_rows(rows), **settings)
        return prepare(config, kind, chatml.tokenizer, chatml.renderer, 8192, tmp_path / "cache")

    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub on the loopback that `HF_ENDPOINT` points to, and an empty cache in front of it."""
    for name in (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
