"""What the renderers are compared with: Meta's tokenizer and documents, published templates, transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from corral.text.tokenizer import Tokenizer
from tests.text.vocabularies import chatml_tokenizer_json, sentencepiece_json

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def meta_tokenizer(llama_models_folder: Path) -> MetaTokenizer:
    """Meta's own class, with the names of Llama 3.1."""
    return MetaTokenizer(llama_models_folder / "llama3" / "tokenizer.model")


@pytest.fixture(scope="session")
def template_folder() -> Path:
    """The chat templates that TRL carries, byte for byte as published (without importing TRL)."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "chat_templates"


@pytest.fixture(scope="session")
def published(template_folder: Path) -> Mapping[str, str]:
    """The published chat template of each Llama 3 family."""
    files = {"llama-3": "llama3", "llama-3.1": "llama3_1", "llama-3.2": "llama3_2", "llama-3.3": "llama3_1"}
    return {name: (template_folder / f"{file}.jinja").read_text() for name, file in files.items()}


@pytest.fixture(scope="session")
def llama_tokenizer(llama_models_folder: Path) -> Callable[[str], Tokenizer]:
    """Meta's tokenizer with the control tokens of a family."""
    file = llama_models_folder / "llama3" / "tokenizer.model"
    made = {
        name: Tokenizer.from_meta(file, name) for name in ("llama-3", "llama-3.1", "llama-3.2", "llama-3.3")
    }
    return made.__getitem__


@pytest.fixture(scope="session")
def render_with_transformers() -> Callable[..., str]:
    """The text that transformers renders from a template."""

    def render(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
        rendered, _ = render_jinja_template([messages], chat_template=template, **variables)
        return str(rendered[0])

    return render


@pytest.fixture(scope="session")
def chatml() -> str:
    """SmolLM2's chat template."""
    return CHATML


@pytest.fixture(scope="session")
def chatml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with ChatML's control tokens."""
    return _tokenizer_folder(tmp_path_factory, chatml_tokenizer_json(), "<|endoftext|>", "<|im_end|>")


@pytest.fixture(scope="session")
def llama2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the style of Llama 2 and TinyLlama."""
    return _tokenizer_folder(tmp_path_factory, sentencepiece_json("first"), "<s>", "</s>")


def _tokenizer_folder(factory: pytest.TempPathFactory, source: str, bos: str, eos: str) -> Path:
    folder = factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(source)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": eos}))
    return folder


@pytest.fixture(scope="session")
def as_transformers() -> Callable[[Path], PreTrainedTokenizerFast]:
    """The tokenizer of a folder as transformers reads it."""

    def read(folder: Path) -> PreTrainedTokenizerFast:
        names = json.loads((folder / "tokenizer_config.json").read_text())
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)

    return read
