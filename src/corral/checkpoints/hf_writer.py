"""Writes a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint, GenerationConfig
from corral.checkpoints.report import Report, silent
from corral.checkpoints.snapshot import INDEX, SINGLE
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig
from corral.text.control_tokens import END_OF_TURN
from corral.text.prompt_format import Templates, exported_format
from corral.text.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9


def export_hf(
    checkpoint: Checkpoint,
    out: Path,
    dtype: torch.dtype | None = None,
    prompt_format: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Report = silent,
) -> None:
    """Writes any checkpoint as a folder that transformers and others load.

    The folder appears whole or not at all. An instruct model gets a chat template even if it has none of its
    own, and the stop ids of its Llama 3 family. `prompt_format` names a family, such as "llama-3.1", whose
    template is written in any case.

    Raises:
        CheckpointError: `out` exists and is not empty, or the disk is full.
        RenderError: `prompt_format` is no family.
        TokenizerError: the tokenizer lacks a control token of the format.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; choose another")
    tokenizer = checkpoint.tokenizer()
    template, stop_ids = exported_format(
        tokenizer,
        chat_template=checkpoint.chat_template,
        family=checkpoint.family,
        prompt_format=prompt_format,
    )
    wanted = dtype or getattr(torch, checkpoint.config.dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise _not_written(out, error) from None
    try:
        _check_space(checkpoint.config.num_parameters * wanted.itemsize, out.parent)
        _write_tensors(partial, _cast(checkpoint, wanted, report), max_shard_bytes)
        write_side_files(
            partial,
            checkpoint.config.with_dtype(str(wanted).removeprefix("torch.")),
            _with_stop_ids(checkpoint.generation, stop_ids),
            tokenizer,
            template,
            eos_token=END_OF_TURN if stop_ids else None,
        )
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise _not_written(out, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_side_files(
    folder: Path,
    config: LlamaConfig,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    chat_template: Templates | None,
    eos_token: str | None = None,
) -> None:
    """config.json, generation_config.json, tokenizer.json, tokenizer_config.json and the chat template.

    `eos_token` is what ends a message, where that is not what ends a text.
    """
    _write_json(folder / "config.json", config.to_hf())
    _write_json(
        folder / "generation_config.json", {"bos_token_id": config.bos_token_id, **generation.to_hf()}
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    names: dict[int | None, str] = {token_id: text for text, token_id in tokenizer.control.items()}
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names.get(tokenizer.bos_id),
        "eos_token": eos_token or names.get(tokenizer.eos_id),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    if isinstance(chat_template, str):
        fields["chat_template"] = chat_template
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    elif chat_template is not None:
        fields["chat_template"] = [{"name": n, "template": text} for n, text in chat_template.items()]
    _write_json(folder / "tokenizer_config.json", fields)


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


def _write_tensors(folder: Path, tensors: Iterator[tuple[str, Tensor]], max_shard_bytes: int) -> None:
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


def _shards(tensors: Iterator[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
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
    save_file(shard, file, metadata={"format": "pt"})
    return file, list(shard), sum(tensor.nbytes for tensor in shard.values())


def _not_written(out: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{out} could not be written: {error.strerror or error}")


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free, but the weights take {needed / 1e9:.1f} GB; "
            "free some space or choose another place"
        )


def _write_json(file: Path, fields: dict[str, Any]) -> None:
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
