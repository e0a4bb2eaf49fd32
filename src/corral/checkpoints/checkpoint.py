"""What a checkpoint is, whichever files it lies in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from corral.errors import CheckpointError
from corral.model.config import LlamaConfig, token_ids
from corral.quant import Weight
from corral.text.tokenizer import Tokenizer

ChatTemplate = str | dict[str, str]


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling defaults that the makers of a checkpoint recommend (generation_config.json)."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    do_sample: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> GenerationConfig:
        """Reads a generation_config.json; fields that Corral does not use are left out."""
        return cls(
            temperature=fields.get("temperature"),
            top_k=fields.get("top_k"),
            top_p=fields.get("top_p"),
            min_p=fields.get("min_p"),
            repetition_penalty=fields.get("repetition_penalty"),
            do_sample=bool(fields.get("do_sample", False)),
            eos_token_ids=token_ids(fields, "eos_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """A generation_config.json."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        fields: dict[str, Any] = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        if self.do_sample:
            fields["do_sample"] = True
        if self.eos_token_ids:
            fields["eos_token_id"] = list(self.eos_token_ids)
        return fields


class Checkpoint(Protocol):
    """A model on disk. Nothing large is read until `tensors` is iterated.

    Attributes:
        path: the folder or file.
        format: "safetensors", "meta" or "gguf".
        config: the network's shape.
        family: the Llama 3 prompt family where the files tell, else None.
        chat_template: the Jinja template (or several by name), if the checkpoint has one.
        generation: recommended sampling.
        storage: how many tensors are stored in which type, such as {"Q4_1": 210, "F32": 61}.
        files: those that decide what the tensors are and how they are read.
    """

    path: Path
    format: str
    config: LlamaConfig
    family: str | None
    chat_template: ChatTemplate | None
    generation: GenerationConfig

    @property
    def storage(self) -> dict[str, int]: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Tensors by Hugging Face weight name, one at a time; quantized ones as float32.

        With a `prefix`, such as "model.layers.3.", those whose name begins with it; no others are read.
        """

    def weights(self, prefix: str = "") -> Iterator[tuple[str, Weight]]:
        """As `tensors`, but quantized matrices as the weight family that holds them without loss."""

    def tokenizer(self) -> Tokenizer: ...


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); it may be truncated") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return value
