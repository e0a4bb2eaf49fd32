"""A small model to quantize, and texts for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.model.attention import PackedCausal
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.quantizer.calibration import CalibrationOptions
from corral.quantizer.recipe import Recipe
from corral.quantizer.result import QuantizeResult
from corral.quantizer.run import quantize
from corral.quantizer.texts import TextSources
from tests.checkpoints.writers import CHATML, write_hf
from tests.random_models import SMALL, SMALL_CHAT, random_model
from tests.text.vocabularies import chatml_tokenizer_json

MODEL = replace(
    SMALL,
    vocab_size=SMALL_CHAT.vocab_size,
    num_hidden_layers=3,
    eos_token_ids=SMALL_CHAT.eos_token_ids,
    max_position_embeddings=128,
    dtype="bfloat16",
)
TEXT = "".join(
    f"{i} The quick brown fox jumps over the lazy dog; hello world, {i * i} times. Größe, naïve, 猫.\n"
    for i in range(150)
)
SOURCES = CalibrationOptions(samples=24, length=64)


def salient_model(config: LlamaConfig = MODEL, seed: int = 0) -> Llama:
    """A random model some of whose channels carry much more than others, as those of trained models do."""
    model = random_model(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            chosen = torch.randperm(len(parameter), generator=generator)[: len(parameter) // 16]
            parameter.data[chosen] *= 12
    return model


def write_source(folder: Path, config: LlamaConfig = MODEL, model: Llama | None = None) -> Path:
    """A folder of a model with its tokenizer, in bfloat16, and beside it text.txt."""
    model = (model or salient_model(config)).to(getattr(torch, config.dtype))
    write_hf(model, folder, 1)
    (folder / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    side = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(side))
    text_of(folder).write_text(TEXT, encoding="utf-8")
    return folder


def text_of(source: Path) -> Path:
    return source.parent / "text.txt"


def run(source: Path, out: Path, recipe: Recipe, *, text: bool = True, **more: object) -> QuantizeResult:
    """Quantizes a folder that `write_source` wrote."""
    sources = TextSources(str(text_of(source)) if text else None, options=SOURCES, evaluation_samples=4)
    return quantize(str(source), out, recipe, sources, **more)  # type: ignore[arg-type]


def weights_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, dequantized."""
    return dict(open_checkpoint(path).tensors())


def logits(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """In float32, with the weights as they are stored."""
    model = load_model(checkpoint, torch.float32)
    return model.logits(model(tokens, torch.arange(len(tokens)), PackedCausal([0, len(tokens)])))
