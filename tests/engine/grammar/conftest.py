"""Compilers for real and small vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from corral.engine.grammar.compiler import GrammarCompiler
from corral.text.tokenizer import Tokenizer
from tests.text.vocabularies import chatml_tokenizer_json, sentencepiece_json

STOP_IDS = frozenset([128001, 128008, 128009])


@pytest.fixture(scope="session")
def llama3_compiler(llama3_tokenizer: Tokenizer) -> GrammarCompiler:
    """For Llama 3's vocabulary, with an embedding padded beyond it. A busy machine is no reason to refuse."""
    return GrammarCompiler(llama3_tokenizer, 128320, seconds=120)


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """A small tokenizer by its kind: "chatml" is byte-level, the others are SentencePiece."""

    @cache
    def made(kind: str) -> Tokenizer:
        folder: Path = tmp_path_factory.mktemp(kind)
        source = chatml_tokenizer_json() if kind == "chatml" else sentencepiece_json(kind)
        (folder / "tokenizer.json").write_text(source)
        return Tokenizer.from_hf(folder)

    return made
