"""Small models on disk, and what transformers computes with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import LlamaForCausalLM

from corral.model.llama import Llama
from tests.checkpoints.writers import write_hf
from tests.random_models import SMALL_CHAT, random_model
from tests.text.vocabularies import chatml_tokenizer_json, sentencepiece_json

BYTE_LEVEL = replace(SMALL_CHAT, max_position_embeddings=2048)
WITH_BOS = replace(BYTE_LEVEL, vocab_size=500, bos_token_id=1)

TEXT = (
    "The quick brown fox jumps over the lazy dog, and then the fox is quick again. "
    "Numbers 0123456789: hello world, the world is wide; hello again! Größe, naïve, 猫.\n\n"
) * 8


def write_model(folder: Path, *, with_bos: bool = False, seed: int = 0, noise: float = 0.0) -> Path:
    """A random model with a tokenizer: a byte-level one, or a SentencePiece one that begins texts with <s>.

    `noise` moves every weight, by so much of the scale that it has.
    """
    model = random_model(WITH_BOS if with_bos else BYTE_LEVEL, seed)
    if noise:
        _disturb(model, noise)
    write_hf(model, folder, 1)
    (folder / "tokenizer.json").write_text(_with_bos() if with_bos else chatml_tokenizer_json(), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"} if with_bos else {}))
    return folder


def _with_bos() -> str:
    tokenizer = Tokenizer.from_str(sentencepiece_json("legacy"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return str(tokenizer.to_str())


def _disturb(model: Llama, noise: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std() * noise)


def ids_of(folder: Path, text: str) -> list[int]:
    """The text's ids by the library that defines the tokenizer, without any that begins it."""
    ids: list[int] = (
        Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    )
    return ids


class Oracle:
    """A checkpoint in transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        self._network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprobs(self, tokens: Sequence[int]) -> Tensor:
        """Natural logarithms of the probabilities of each next token [len(tokens), vocab_size], float64."""
        with torch.inference_mode():
            logits: Tensor = self._network(torch.tensor([tokens])).logits[0]
        return logits.double().log_softmax(-1)

    def losses(self, tokens: Sequence[int], counted: int) -> Tensor:
        """Negative log-likelihoods of the last `counted` tokens."""
        with torch.inference_mode():
            ids = torch.tensor([tokens])
            logits: Tensor = self._network(ids).logits[0, -counted - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.double(), ids[0, -counted:], reduction="none")
