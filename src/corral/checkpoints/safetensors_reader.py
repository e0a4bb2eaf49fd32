"""Reads Hugging Face folders: config.json, safetensors (single or sharded), tokenizer files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from corral.checkpoints.checkpoint import ChatTemplate, GenerationConfig, read_json
from corral.checkpoints.snapshot import INDEX, SINGLE
from corral.errors import CheckpointError, ConfigError
from corral.model.config import LlamaConfig
from corral.model.presets import find_preset
from corral.quant import Weight
from corral.text.tokenizer import Tokenizer

CONFIG = "config.json"


class SafetensorsCheckpoint:
    """A Hugging Face folder. Tensors are memory-mapped: they cost memory only once they are used."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.generation = read_configs(path)
        self.family = _family(path, self.config)
        self.chat_template = read_chat_template(path)
        self._files = _files_of_tensors(path)

    @property
    def storage(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for file in dict.fromkeys(self._files.values()):
            counts.update(entry["dtype"] for name, entry in _header(file).items() if name != "__metadata__")
        return dict(counts)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path / CONFIG, *dict.fromkeys(self._files.values()))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        names_of: dict[Path, list[str]] = {}
        for name, file in self._files.items():
            names_of.setdefault(file, []).append(name)
        for file, names in names_of.items():
            with _open(file) as tensors:
                present = set(tensors.keys())
                for name in names:
                    if name not in present:
                        raise CheckpointError(f"{file} does not hold {name}, which {INDEX} says it does")
                    yield name, tensors.get_tensor(name)

    def weights(self) -> Iterator[tuple[str, Weight]]:
        yield from self.tensors()

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_hf(self.path)


def read_configs(folder: Path) -> tuple[LlamaConfig, GenerationConfig]:
    """config.json and, if there is one, generation_config.json of a folder."""
    fields = read_json(folder / CONFIG)
    if quantization := fields.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ConfigError(
            f"{folder / 'config.json'}: quantization_config.quant_method is {method!r}, "
            "which Corral does not read; use the unquantized checkpoint or a GGUF file"
        )
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


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map; download it again")
        for name in dict.fromkeys(weight_map.values()):
            if not (folder / str(name)).is_file():
                raise CheckpointError(
                    f"{folder / str(name)} is missing, but {INDEX} names it; download it again"
                )
        return {tensor: folder / name for tensor, name in weight_map.items()}
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    return {name: file for file in files for name in _header(file) if name != "__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name -> dtype, shape, offsets.

    The format: eight bytes of header length, the header, the data (safetensors' README).
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length < file.stat().st_size else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise _damaged(file)
    return header


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError):
        raise _damaged(file) from None


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is truncated or is not a safetensors file; download it again")
