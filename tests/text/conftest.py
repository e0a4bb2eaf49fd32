"""What the renderers are compared with: Meta's tokenizer and documents, published templates, transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
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


@pytest.fixture(scope="session")
def sentencepiece_model(
    tmp_path_factory: pytest.TempPathFactory, llama_models_folder: Path
) -> tuple[Any, dict[str, Any]]:
    """A SentencePiece BPE model trained on Meta's documents, and the same as GGUF metadata."""
    prefix = tmp_path_factory.mktemp("sentencepiece") / "model"
    sentencepiece.SentencePieceTrainer.train(
        input=str(llama_models_folder / "llama3_1" / "prompt_format.md"),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    ids = range(processor.get_piece_size())
    kinds = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        for i in ids
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
    }
    return processor, metadata
