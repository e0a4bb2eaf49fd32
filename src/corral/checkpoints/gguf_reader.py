"""Reads GGUF files of the llama architecture: config, tokenizer, template and tensors, all from one file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray
from torch import Tensor

from corral.checkpoints.checkpoint import ChatTemplate
from corral.checkpoints.gguf_blocks import read_blocks
from corral.checkpoints.gguf_file import GgufFile, GgufTensor
from corral.checkpoints.gguf_metadata import llama3_scaling, read_ends, read_generation, read_templates
from corral.checkpoints.gguf_names import ROPE_FACTORS, hf_name
from corral.checkpoints.snapshot import gguf_parts
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.rope import interleaved_to_halves
from corral.quant import Affine, Codebook, Weight
from corral.text.tokenizer import Tokenizer

_PLAIN = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}
_DEQUANTIZED_AT_ONCE = 1 << 18  # elements: the temporaries of dequantizing stay in the processor's cache


class GgufCheckpoint:
    """A GGUF file, or the first of a split one."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = [GgufFile(part) for part in _parts(path)]
        self.metadata = self._files[0].metadata
        self.family: str | None = None
        self._where = {t.name: (file, t) for file in self._files for t in file.tensors.values()}
        for file, tensor in self._where.values():
            _check_whole(file, tensor)
        try:
            self.config = self._read_config()
            self.chat_template: ChatTemplate | None = read_templates(self.metadata)
            self.generation = read_generation(self.metadata)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(
                f"{path}: its metadata makes no sense ({error}); download it again"
            ) from None

    @property
    def storage(self) -> dict[str, int]:
        return dict(Counter(GgmlType(tensor.type).name for _, tensor in self._where.values()))

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._files)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for full, name in self._names(prefix):
            yield full, self._undo_permutation(name, _read_tensor(*self._where[name]))

    def weights(self, prefix: str = "") -> Iterator[tuple[str, Weight]]:
        for full, name in self._names(prefix):
            file, tensor = self._where[name]
            if GgmlType(tensor.type) in _PLAIN or len(tensor.shape) != 2:
                yield full, self._undo_permutation(name, _read_tensor(file, tensor))
                continue
            weight = _read_blocks(file, tensor)
            order = self._undo_permutation(name, torch.arange(tensor.shape[0]))
            moved = ".attn_q." in name or ".attn_k." in name
            yield full, weight.rows(order) if moved else weight

    def _names(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Hugging Face names that begin with `prefix`, each with the file's own."""
        for name, (file, _) in self._where.items():
            if name != ROPE_FACTORS and (full := _hf_name(name, file.path)).startswith(prefix):
                yield full, name

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.metadata)

    def _undo_permutation(self, name: str, tensor: Tensor) -> Tensor:
        """GGUF pairs neighbouring dimensions in rotary embeddings, as Meta does."""
        heads = 0
        if ".attn_q." in name:
            heads = self.config.num_attention_heads
        elif ".attn_k." in name:
            heads = self.config.num_key_value_heads
        if not heads or tensor.shape[0] != heads * self.config.head_dim:
            return tensor  # a wrong shape is refused by name when the model takes it
        return interleaved_to_halves(tensor, heads)

    def _field(self, name: str, default: Any = None) -> Any:
        value = self.metadata.get(f"llama.{name}", default)
        if value is None:
            raise CheckpointError(f"{self.path} has no llama.{name} in its metadata")
        return value

    def _read_config(self) -> LlamaConfig:
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise CheckpointError(
                f"{self.path} holds a {architecture!r} model; Corral runs the llama architecture"
            )
        if "token_embd.weight" not in self._where:
            raise CheckpointError(f"{self.path} holds no token_embd.weight")
        heads = self._field("attention.head_count")
        hidden_size = self._field("embedding_length")
        config = LlamaConfig(
            vocab_size=self._where["token_embd.weight"][1].shape[0],
            hidden_size=hidden_size,
            intermediate_size=self._field("feed_forward_length"),
            num_hidden_layers=self._field("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._field("attention.head_count_kv", heads),
            head_dim=self._field("attention.key_length", hidden_size // heads),
            max_position_embeddings=self._field("context_length"),
            rms_norm_eps=self._field("attention.layer_norm_rms_epsilon"),
            rope_theta=self._field("rope.freq_base", 10000.0),
            tie_word_embeddings="output.weight" not in self._where,
            attention_bias="blk.0.attn_q.bias" in self._where,
            mlp_bias="blk.0.ffn_up.bias" in self._where,
            bos_token_id=self.metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=read_ends(self.metadata),
            pad_token_id=self.metadata.get("tokenizer.ggml.padding_token_id"),
            dtype=self._dtype(),
        )
        return LlamaConfig(**{**vars(config), "rope_scaling": self._read_rope_scaling(config)})

    def _dtype(self) -> str:
        """The type of unquantized matrices; quantized files become bfloat16 unless another is asked for."""
        where = self._where.get("blk.0.attn_q.weight")
        plain = torch.bfloat16 if where is None else _PLAIN.get(GgmlType(where[1].type), torch.bfloat16)
        return str(plain).removeprefix("torch.")

    def _read_rope_scaling(self, config: LlamaConfig) -> RopeScaling | None:
        if ROPE_FACTORS in self._where:
            scaling = llama3_scaling(config, _read_tensor(*self._where[ROPE_FACTORS]))
            if scaling is None:
                raise CheckpointError(
                    f"{self.path}: {ROPE_FACTORS} follows no rope scaling that Corral knows"
                )
            return scaling
        kind = self.metadata.get("llama.rope.scaling.type", "none")
        factor = self.metadata.get(
            "llama.rope.scaling.factor", self.metadata.get("llama.rope.scale_linear", 1.0)
        )
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return None
        if kind != "linear":
            raise CheckpointError(
                f"{self.path}: llama.rope.scaling.type is {kind!r}; Corral knows none and linear"
            )
        return RopeScaling("linear", float(factor))


def _parts(path: Path) -> list[Path]:
    parts = [path.with_name(name) for name in gguf_parts(path.name)]
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{part} is missing; {path.name} is one of {len(parts)} parts")
    return parts


def _hf_name(name: str, path: Path) -> str:
    full = hf_name(name)
    if full is None:
        raise CheckpointError(f"{path} holds {name}, which no Llama model has")
    return full


def _num_bytes(tensor: GgufTensor, path: Path) -> int:
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[GgmlType(tensor.type)]
    except ValueError:
        raise CheckpointError(f"{path}: {tensor.name} has the unknown type {tensor.type}") from None
    if tensor.shape[-1] % block:
        raise CheckpointError(f"{path}: the rows of {tensor.name} are no multiple of its block of {block}")
    return math.prod(tensor.shape) // int(block) * int(block_bytes)


def _check_whole(file: GgufFile, tensor: GgufTensor) -> None:
    if tensor.offset + _num_bytes(tensor, file.path) > len(file.data):
        raise CheckpointError(f"{file.path} is truncated: {tensor.name} is not whole; download it again")


def _read_tensor(file: GgufFile, tensor: GgufTensor) -> Tensor:
    """One tensor: plain types as they are (no copy), quantized ones as float32."""
    kind = GgmlType(tensor.type)
    if kind in _PLAIN:
        count = _num_bytes(tensor, file.path) // _PLAIN[kind].itemsize
        values = torch.frombuffer(file.data, dtype=_PLAIN[kind], count=count, offset=tensor.offset)
        return values.reshape(tensor.shape)
    rows = _rows_of_blocks(file, tensor)
    output = np.empty((rows.shape[0], tensor.shape[-1]), dtype=np.float32)
    step = max(1, _DEQUANTIZED_AT_ONCE // tensor.shape[-1])
    try:
        for start in range(0, len(rows), step):
            output[start : start + step] = gguf.quants.dequantize(rows[start : start + step], kind)
    except NotImplementedError:
        raise _unknown(file, tensor) from None
    return torch.from_numpy(output).reshape(tensor.shape)


def _read_blocks(file: GgufFile, tensor: GgufTensor) -> Affine | Codebook:
    """One quantized matrix in a weight family."""
    try:
        return read_blocks(_rows_of_blocks(file, tensor), GgmlType(tensor.type))
    except NotImplementedError:
        raise _unknown(file, tensor) from None
    except ValueError as error:
        raise CheckpointError(
            f"{file.path} is damaged at {tensor.name} ({error}); download it again"
        ) from None


def _rows_of_blocks(file: GgufFile, tensor: GgufTensor) -> NDArray[np.uint8]:
    """The bytes of a quantized tensor [rows, bytes of a row], where they lie in the file."""
    count = _num_bytes(tensor, file.path)
    raw = np.frombuffer(file.data, dtype=np.uint8, count=count, offset=tensor.offset)
    return raw.reshape(math.prod(tensor.shape[:-1]), -1)


def _unknown(file: GgufFile, tensor: GgufTensor) -> CheckpointError:
    kind = GgmlType(tensor.type).name
    return CheckpointError(f"{file.path}: {tensor.name} is {kind}, which cannot be dequantized")
