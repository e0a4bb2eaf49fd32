"""Writes a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint, GenerationConfig
from corral.checkpoints.new_folder import new_folder, require_new
from corral.checkpoints.report import Report, silent
from corral.checkpoints.snapshot import INDEX, SINGLE
from corral.model.config import LlamaConfig
from corral.text.control_tokens import END_OF_TURN
from corral.text.prompt_format import Templates, exported_format
from corral.text.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class SideFiles:
    """What a folder holds beside its tensors.

    Attributes:
        eos_token: what ends a message, where that is not what ends a text.
        quantization: the `quantization_config`, where weights are quantized.
        card: the model card, README.md.
        others: more files by name, as JSON.
    """

    config: LlamaConfig
    generation: GenerationConfig
    tokenizer: Tokenizer
    chat_template: Templates | None = None
    eos_token: str | None = None
    quantization: Mapping[str, object] | None = None
    card: str | None = None
    others: Mapping[str, object] | None = None

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, dtype: torch.dtype | None = None, prompt_format: str | None = None
    ) -> SideFiles:
        """Those of a checkpoint whose tensors will be of a type; its own by default.

        An instruct model gets a chat template even if it has none of its own, and the stop ids of its Llama 3
        family. `prompt_format` names a family, such as "llama-3.1", whose template is written in any case.

        Raises:
            RenderError: `prompt_format` is no family.
            TokenizerError: the tokenizer lacks a control token of the format.
        """
        tokenizer = checkpoint.tokenizer()
        template, stop_ids = exported_format(
            tokenizer,
            chat_template=checkpoint.chat_template,
            family=checkpoint.family,
            prompt_format=prompt_format,
        )
        config = checkpoint.config
        return cls(
            config if dtype is None else config.with_dtype(str(dtype).removeprefix("torch.")),
            _with_stop_ids(checkpoint.generation, stop_ids),
            tokenizer,
            template,
            END_OF_TURN if stop_ids else None,
        )

    def write(self, folder: Path) -> None:
        """Writes the configurations, the tokenizer's files, the chat template and the model card."""
        config = self.config.to_hf()
        if self.quantization is not None:
            config["quantization_config"] = dict(self.quantization)
        _write_json(folder / "config.json", config)
        generation = {"bos_token_id": self.config.bos_token_id, **self.generation.to_hf()}
        _write_json(folder / "generation_config.json", generation)
        (folder / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", self._tokenizer_config())
        if isinstance(self.chat_template, str):
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        if self.card is not None:
            (folder / "README.md").write_text(self.card, encoding="utf-8")
        for name, fields in (self.others or {}).items():
            _write_json(folder / name, fields)

    def _tokenizer_config(self) -> dict[str, Any]:
        names: dict[int | None, str] = {i: text for text, i in self.tokenizer.control.items()}
        fields: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names.get(self.tokenizer.bos_id),
            "eos_token": self.eos_token or names.get(self.tokenizer.eos_id),
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.config.max_position_embeddings,
        }
        if isinstance(self.chat_template, str):
            fields["chat_template"] = self.chat_template
        elif self.chat_template is not None:
            named = self.chat_template.items()
            fields["chat_template"] = [{"name": name, "template": text} for name, text in named]
        return fields


def export_hf(
    checkpoint: Checkpoint,
    out: Path,
    dtype: torch.dtype | None = None,
    prompt_format: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Report = silent,
) -> None:
    """Writes any checkpoint as a folder that transformers and others load.

    The folder appears whole or not at all. See `SideFiles.of` for `prompt_format`.

    Raises:
        CheckpointError: `out` exists and is not empty, or the disk is full.
        RenderError: `prompt_format` is no family.
        TokenizerError: the tokenizer lacks a control token of the format.
    """
    require_new(out)
    wanted = dtype or getattr(torch, checkpoint.config.dtype)
    beside = SideFiles.of(checkpoint, wanted, prompt_format)
    num_bytes = checkpoint.config.num_parameters * wanted.itemsize
    with new_folder(out, num_bytes) as folder:
        write_tensors(folder, _cast(checkpoint, wanted, report), max_shard_bytes)
        beside.write(folder)


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Tensors as model.safetensors, or as several files with an index. One file's tensors exist at a time."""
    shards = [_save(folder, i, shard) for i, shard in enumerate(_shards(tensors, max_shard_bytes))]
    if len(shards) == 1:
        shards[0][0].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, (file, names, _) in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    total = sum(size for _, _, size in shards)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _with_stop_ids(generation: GenerationConfig, stop_ids: frozenset[int]) -> GenerationConfig:
    stated = frozenset(generation.eos_token_ids)
    if stop_ids <= stated:
        return generation
    return replace(generation, eos_token_ids=tuple(sorted(stated | stop_ids)))


def _cast(checkpoint: Checkpoint, dtype: torch.dtype, report: Report) -> Iterator[tuple[str, Tensor]]:
    done, total = 0, checkpoint.config.num_parameters * dtype.itemsize
    for name, tensor in checkpoint.tensors():
        if name == "lm_head.weight" and checkpoint.config.tie_word_embeddings:
            continue
        yield name, tensor.to(dtype).contiguous()
        done += tensor.numel() * dtype.itemsize
        report.progress("weights", done, total)


def _shards(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _save(folder: Path, index: int, shard: dict[str, Tensor]) -> tuple[Path, list[str], int]:
    file = folder / f"{index}.safetensors"
    file.touch()
    mode = file.stat().st_mode
    save_file(shard, file, metadata={"format": "pt"})
    file.chmod(mode)  # the library's own is for the owner alone
    return file, list(shard), sum(tensor.nbytes for tensor in shard.values())


def _write_json(file: Path, fields: object) -> None:
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
