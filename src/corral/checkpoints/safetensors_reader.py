"""Reads Hugging Face folders: config.json, safetensors (single or sharded), tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from corral.checkpoints.checkpoint import ChatTemplate, GenerationConfig, read_json
from corral.checkpoints.quantized_safetensors import quantization_of, quantized_weights
from corral.checkpoints.tensor_files import TensorFiles
from corral.errors import CheckpointError, ConfigError
from corral.model.config import LlamaConfig
from corral.model.presets import find_preset
from corral.quant import Weight
from corral.text.tokenizer import Tokenizer

CONFIG = "config.json"


class SafetensorsCheckpoint:
    """A Hugging Face folder. Tensors are memory-mapped: they cost memory only once they are used.

    Attributes:
        quantization: how quantized weights are stored, or None for a folder that says nothing of any.
    """

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.generation = read_configs(path)
        self.quantization, self._settings = quantization_of(path, read_json(path / CONFIG))
        self.family = _family(path, self.config)
        self.chat_template = read_chat_template(path)
        self._tensors = TensorFiles(path)

    @property
    def storage(self) -> dict[str, int]:
        return self._tensors.storage

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path / CONFIG, *self._settings, *self._tensors.paths)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for name, weight in self.weights(prefix):
            yield name, weight if isinstance(weight, Tensor) else weight.dequantize()

    def weights(self, prefix: str = "") -> Iterator[tuple[str, Weight]]:
        if self.quantization is None:
            yield from self._tensors.each(prefix)
        else:
            yield from quantized_weights(self._tensors, self.quantization, self.config, prefix)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_hf(self.path)


def read_configs(folder: Path) -> tuple[LlamaConfig, GenerationConfig]:
    """config.json and, if there is one, generation_config.json of a folder."""
    fields = read_json(folder / CONFIG)
    try:
        config = LlamaConfig.from_hf(fields)
        file = folder / "generation_config.json"
        generation = GenerationConfig.from_hf(read_json(file) if file.is_file() else {})
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    return config, generation


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template, from chat_template.jinja or tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{file} is not UTF-8 text; download it again") from None
    file = folder / "tokenizer_config.json"
    template: Any = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(template, list):
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in template}
        except (KeyError, TypeError):
            raise CheckpointError(
                f"{file}: chat_template must be text, or a list of objects with name and template"
            ) from None
    return template if isinstance(template, str) else None


def _family(path: Path, config: LlamaConfig) -> str | None:
    """A Llama 3 family that the folder's name tells, where the shape agrees."""
    preset = find_preset(path.name)
    return preset.family if preset and preset.config.hidden_size == config.hidden_size else None
