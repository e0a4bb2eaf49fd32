"""Writes a model as one GGUF file of the llama architecture: for llama.cpp and all that read its files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.gguf_encode import BLOCK, FLOATS, TYPES, encoded, fitting
from corral.checkpoints.gguf_metadata import (
    end_fields,
    rope_factors,
    sampling_fields,
    shape_fields,
    template_fields,
)
from corral.checkpoints.gguf_names import ROPE_FACTORS, gguf_name
from corral.checkpoints.hf_writer import SideFiles
from corral.checkpoints.load import checked
from corral.checkpoints.new_file import new_file, require_new_file
from corral.checkpoints.report import Report, silent
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.model.rope import halves_to_interleaved
from corral.quant import Weight
from corral.text.gguf_export import to_gguf

_FILE_TYPES = {
    GgmlType.F32: gguf.LlamaFileType.ALL_F32,
    **{kind: gguf.LlamaFileType[f"MOSTLY_{kind.name}"] for kind in TYPES.values() if kind != GgmlType.F32},
}


def tensor_types(config: LlamaConfig, kind: GgmlType) -> dict[str, GgmlType]:
    """The type of each tensor of a model whose matrices are to be of one type, by Hugging Face weight name.

    Norms and biases are F32, as llama.cpp wants them. In a quantized file the embedding and the head are
    Q8_0: of the embedding a token reads one row, so that fewer bits would save no time, and what is lost in
    the head is lost in the logits themselves. (llama.cpp chooses Q6_K for the head of a 4-bit file, which
    only it can write.) A matrix whose columns are no multiple of 32 has no blocks; it is F16, as with
    llama.cpp.
    """
    kinds = {}
    for name, shape in _shapes(config).items():
        if len(shape) == 1:
            kinds[name] = GgmlType.F32
        elif kind in FLOATS:
            kinds[name] = kind
        elif shape[1] % BLOCK:
            kinds[name] = GgmlType.F16
        else:
            kinds[name] = kind if name.startswith("model.layers.") else GgmlType.Q8_0
    return kinds


def export_gguf(
    checkpoint: Checkpoint,
    out: Path,
    kind: GgmlType = GgmlType.BF16,
    prompt_format: str | None = None,
    report: Report = silent,
) -> None:
    """Writes any checkpoint as a GGUF file with matrices of one of `TYPES` (see `tensor_types`).

    The file appears whole or not at all. A quantized matrix keeps its codes and scales where the type holds
    them; any other is dequantized, and quantized anew by ggml's rule. See `SideFiles.of` for `prompt_format`,
    and `write_gguf` for what is raised.
    """
    require_new_file(out, ".gguf")
    kinds = tensor_types(checkpoint.config, kind)
    beside = SideFiles.of(checkpoint, prompt_format=prompt_format)
    network = Llama.on_meta(checkpoint.config)
    weights = (
        (name, fitting(weight, kinds[name]))
        for name, weight in checked(checkpoint, network, checkpoint.weights())
    )
    write_gguf(out, beside, kinds, weights, report=report)


def write_gguf(
    out: Path,
    beside: SideFiles,
    kinds: Mapping[str, GgmlType],
    weights: Iterable[tuple[str, Weight]],
    *,
    name: str | None = None,
    report: Report = silent,
) -> None:
    """Writes a GGUF file; one tensor at a time is in memory.

    Args:
        out: the file to write, which must not exist; it appears whole or not at all.
        beside: the shape, the tokenizer, the chat template, the sampling and the ids that end a message.
        kinds: the type of each tensor by Hugging Face weight name, in the order of the file; a tied head is
            left out. `tensor_types` makes one.
        weights: each tensor once, in any order, in Hugging Face's layout (halves, not pairs, are rotated). A
            Tensor is rounded to its type. An `Affine` keeps its codes and scales: its type must be a block
            type that holds it (`affine_blocks`).
        name: of the model, for people; by default the file's.
        report: told of the bytes that are written, and of what GGUF has no place for.

    Raises:
        CheckpointError: `out` exists, the disk is full, a tensor is missing or does not fit its type, or GGUF
            has no place for the rope scaling. The message names the tensor or the field.
        TokenizerError: GGUF cannot hold the tokenizer.
    """
    require_new_file(out, ".gguf")
    plan = _Plan(beside.config, kinds)
    metadata, losses = _metadata(beside, plan.kinds)
    metadata["general.name"] = name or out.stem
    for loss in losses:
        report.notice(f"{out}: {loss}")
    with new_file(out, plan.num_bytes) as partial:
        start = _write_header(partial, metadata, plan)
        with partial.open("r+b") as file:
            file.truncate(start + plan.num_bytes)
            _write_tensors(file, start, plan, weights, report)
            file.flush()
            os.fsync(file.fileno())


class _Plan:
    """Where each tensor of a file lies, counted from the first one.

    Attributes:
        kinds, shapes: by Hugging Face weight name.
        places: first byte and number of bytes of each tensor, by GGUF's name, in order.
    """

    def __init__(self, config: LlamaConfig, kinds: Mapping[str, GgmlType]) -> None:
        self.config = config
        self.shapes = _shapes(config)
        if set(kinds) != set(self.shapes):
            wrong = min(set(kinds) ^ set(self.shapes))
            raise CheckpointError(f"{wrong} has a type but no place in the model, or a place but no type")
        self.kinds = dict(kinds)
        self.factors = rope_factors(config)
        tensors = [(gguf_name(name), self.shapes[name], kind) for name, kind in kinds.items()]
        if self.factors is not None:
            tensors.insert(0, (ROPE_FACTORS, tuple(self.factors.shape), GgmlType.F32))
        self.tensors = {name: (shape, kind, _size(name, shape, kind)) for name, shape, kind in tensors}
        self.places: dict[str, tuple[int, int]] = {}
        self.num_bytes = 0
        for name, (_, _, size) in self.tensors.items():
            self.places[name] = (self.num_bytes, size)
            self.num_bytes += _padded(size)


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a file, by Hugging Face weight name: embedding, layers, norm, head."""
    shapes = {name: tuple(tensor.shape) for name, tensor in Llama.on_meta(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def _size(name: str, shape: tuple[int, ...], kind: GgmlType) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if kind not in TYPES.values() or shape[-1] % block:
        raise CheckpointError(f"{name} of shape {list(shape)} cannot be written as {kind.name}")
    return prod(shape) // int(block) * int(block_bytes)


def _padded(size: int) -> int:
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT
    return -(-size // alignment) * alignment


def _metadata(beside: SideFiles, kinds: Mapping[str, GgmlType]) -> tuple[dict[str, Any], list[str]]:
    """All fields but the architecture and the name; and what is lost, a sentence each."""
    config, tokenizer = beside.config, beside.tokenizer
    vocabulary = to_gguf(tokenizer, config.vocab_size)
    stop_ids = beside.generation.eos_token_ids or config.eos_token_ids
    ends, left = end_fields(stop_ids, tokenizer)
    matrices = Counter(kind for name, kind in kinds.items() if name.endswith("proj.weight"))
    fields = {
        "general.type": "model",
        "general.file_type": int(_FILE_TYPES[matrices.most_common(1)[0][0]]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **shape_fields(config),
        **vocabulary.fields,
        **ends,
        **template_fields(beside.chat_template),
        **sampling_fields(beside.generation),
    }
    if config.pad_token_id is not None:
        fields["tokenizer.ggml.padding_token_id"] = config.pad_token_id
    if config.bos_token_id is not None:
        fields.setdefault("tokenizer.ggml.bos_token_id", config.bos_token_id)
    losses = [f"GGUF has no place for token {i} as one that ends a message" for i in left]
    return fields, [*vocabulary.losses, *losses]


def _write_header(file: Path, metadata: Mapping[str, Any], plan: _Plan) -> int:
    """Writes all that comes before the tensors; gives the position of the first."""
    writer = gguf.GGUFWriter(file, "llama")
    try:
        for name, value in metadata.items():
            _add_field(writer, name, value)
        for name, (shape, kind, size) in plan.tensors.items():
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return _padded(file.stat().st_size)


def _add_field(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _write_tensors(
    file: IO[bytes], start: int, plan: _Plan, weights: Iterable[tuple[str, Weight]], report: Report
) -> None:
    done, total = 0, sum(size for _, size in plan.places.values())
    if plan.factors is not None:
        file.seek(start + plan.places[ROPE_FACTORS][0])
        done += file.write(plan.factors.numpy().tobytes())
    missing = dict.fromkeys(plan.kinds)
    for name, weight in weights:
        if name not in missing:
            raise CheckpointError(f"{name} is given twice, or has no place in the model")
        if tuple(weight.shape) != plan.shapes[name]:
            found, wanted = list(weight.shape), list(plan.shapes[name])
            raise CheckpointError(f"{name} has shape {found}; the configuration asks for {wanted}")
        position, size = plan.places[gguf_name(name)]
        file.seek(start + position)
        try:
            for part in encoded(_rotated_in_pairs(name, weight, plan.config), plan.kinds[name]):
                file.write(part)
        except ValueError as error:
            raise CheckpointError(f"{name} cannot be written as {plan.kinds[name].name}: {error}") from None
        assert file.tell() == start + position + size, name
        del missing[name]
        done += size
        report.progress("weights", done, total)
    if missing:
        raise CheckpointError(f"{len(missing)} of the model's tensors are missing, among them {min(missing)}")


def _rotated_in_pairs(name: str, weight: Weight, config: LlamaConfig) -> Weight:
    """Rows as GGUF has them: neighbouring dimensions of queries and keys are rotated together."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return weight
    if isinstance(weight, Tensor):
        return halves_to_interleaved(weight, count)
    return weight.rows(halves_to_interleaved(torch.arange(weight.shape[0]), count))
