"""Reads Meta's checkpoints: params.json, tokenizer.model, a consolidated.NN.pth per model-parallel rank."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corral.checkpoints.checkpoint import ChatTemplate, GenerationConfig, read_json
from corral.errors import CheckpointError, ConfigError
from corral.model.config import LlamaConfig, RopeScaling
from corral.model.presets import PRESETS, Preset
from corral.model.rope import interleaved_to_halves
from corral.quant import Weight
from corral.text.control_tokens import BEGIN_OF_TEXT, control_names
from corral.text.families import family_named
from corral.text.tokenizer import Tokenizer

PARAMS = "params.json"
SHARDS = "consolidated.*.pth"

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
_SPLIT_BY_COLUMNS = ("attention.wo", "feed_forward.w2")  # fairscale's RowParallelLinear


class MetaCheckpoint:
    """A folder with params.json and any number of model-parallel shards, which are memory-mapped."""

    format = "meta"

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.glob(SHARDS))
        self._shards = [_load_shard(file) for file in files]
        self.files: tuple[Path, ...] = (path / PARAMS, *files)
        if not self._shards:
            raise CheckpointError(f"{path} holds no weights: no {SHARDS}")
        rows = sum(part.shape[0] for part in self._parts("tok_embeddings.weight"))
        self._parts("norm.weight")
        self.config = replace(
            read_params(path / PARAMS, rows),
            tie_word_embeddings=self._is_tied(),
            dtype=str(self._shards[0]["norm.weight"].dtype).removeprefix("torch."),
        )
        self._check_number_of_shards()
        self.family = self._read_family()
        self.chat_template: ChatTemplate | None = None
        self.generation = GenerationConfig(eos_token_ids=self.config.eos_token_ids)

    @property
    def storage(self) -> dict[str, int]:
        return dict(Counter(str(t.dtype).removeprefix("torch.") for t in self._shards[0].values()))

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for name in self._shards[0]:
            if not name.startswith("rope.") and (full := _hf_name(name, self.path)).startswith(prefix):
                yield full, self._merge(name)

    def weights(self, prefix: str = "") -> Iterator[tuple[str, Weight]]:
        yield from self.tensors(prefix)

    def tokenizer(self) -> Tokenizer:
        for folder in (self.path, self.path.parent):
            if (folder / "tokenizer.model").is_file():
                return Tokenizer.from_meta(folder / "tokenizer.model", self.family or "llama-3.1")
        raise CheckpointError(f"{self.path} has no tokenizer.model; copy Meta's beside {PARAMS}")

    def _parts(self, name: str) -> list[Tensor]:
        try:
            return [shard[name] for shard in self._shards]
        except KeyError:
            raise CheckpointError(f"{self.path}: {name} is not in every shard; a file is missing") from None

    def _check_number_of_shards(self) -> None:
        rows = self._parts("layers.0.attention.wq.weight")[0].shape[0]
        wanted = self.config.num_attention_heads * self.config.head_dim / rows
        if len(self._shards) != wanted:
            raise CheckpointError(
                f"{self.path} holds {len(self._shards)} {SHARDS} files, but the model has {wanted:g}; "
                f"a file is missing, or {PARAMS} belongs to another model"
            )

    def _merge(self, name: str) -> Tensor:
        """A whole tensor from the parts that the ranks hold."""
        parts = self._parts(name)
        config = self.config
        if parts[0].ndim == 1:
            return parts[0]  # norms are the same on every rank
        if name.endswith((".wk.weight", ".wv.weight")):
            # With more ranks than key-value heads, neighbouring ranks hold copies of the same head.
            copies = len(parts) * parts[0].shape[0] // (config.num_key_value_heads * config.head_dim)
            parts = parts[:: max(1, copies)]
        by_columns = any(part in name for part in _SPLIT_BY_COLUMNS)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1 if by_columns else 0)
        if name.endswith(".wq.weight"):
            return interleaved_to_halves(whole, config.num_attention_heads)
        if name.endswith(".wk.weight"):
            return interleaved_to_halves(whole, config.num_key_value_heads)
        return whole

    def _is_tied(self) -> bool:
        return "output.weight" not in self._shards[0]

    def _read_family(self) -> str | None:
        """The prompt family, where the folder's name says that the checkpoint is an instruct one."""
        names = f"{self.path.parent.name}/{self.path.name}".lower()
        if "instruct" not in names:
            return None
        if "3.3" in names or "3-3" in names:
            return "llama-3.3"
        if self.config.rope_scaling is None:
            return "llama-3"
        return "llama-3.2" if self.config.rope_scaling.factor == 32 else "llama-3.1"


def read_params(file: Path, vocab_size: int | None = None) -> LlamaConfig:
    """The shape that a params.json tells; `vocab_size` stands in where the file says -1 ("the tokenizer's").

    Raises:
        ConfigError: a field is missing or of the wrong type.
    """
    params = read_json(file)
    preset = _matching_preset(params)
    if preset is not None:
        return preset.config
    try:
        scaled = bool(params.get("use_scaled_rope", False))
        stated = params.get("vocab_size", -1)
        family = family_named("llama-3.1" if scaled else "llama-3")
        ids = control_names(family.name)
        return LlamaConfig(
            vocab_size=int(vocab_size or 0) if stated < 1 else stated,
            hidden_size=params["dim"],
            intermediate_size=_intermediate_size(params),
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
            head_dim=params["dim"] // params["n_heads"],
            max_position_embeddings=131072 if scaled else 8192,
            rms_norm_eps=params.get("norm_eps", 1e-5),
            rope_theta=params.get("rope_theta", 500000.0),
            # The reference network (llama_models.llama3.model.apply_scaling) fixes these numbers.
            rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192) if scaled else None,
            bos_token_id=ids[BEGIN_OF_TEXT],
            eos_token_ids=tuple(ids[token] for token in family.stop_tokens),
        )
    except KeyError as error:
        raise ConfigError(f"{file}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{file}: a field has a value that makes no sense ({error})") from None


def _intermediate_size(params: dict[str, Any]) -> int:
    """Two thirds of four times `dim`, times a factor, rounded up (llama_models.llama3.model.FeedForward)."""
    size = int(2 * (4 * params["dim"]) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        size = int(params["ffn_dim_multiplier"] * size)
    multiple: int = params.get("multiple_of", 256)
    return -(-size // multiple) * multiple


def _matching_preset(params: dict[str, Any]) -> Preset | None:
    """The published model with this shape: params.json does not tell its rope factor or context length."""
    for preset in PRESETS.values():
        config = preset.config
        shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size)
        stated = tuple(params.get(name) for name in ("dim", "n_layers", "n_heads", "vocab_size"))
        if shape == stated and (config.rope_scaling is not None) == bool(params.get("use_scaled_rope")):
            return preset
    return None


def _hf_name(name: str, path: Path) -> str:
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise CheckpointError(f"{path} holds {name}, which no Llama model has")
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.weight"


def _load_shard(file: Path) -> dict[str, Tensor]:
    try:
        shard = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is truncated or holds more than tensors; Corral loads only plain tensors from it"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError):
        raise CheckpointError(f"{file} is truncated or is not a PyTorch file; download it again") from None
    if not isinstance(shard, dict) or not all(isinstance(value, Tensor) for value in shard.values()):
        raise CheckpointError(f"{file} does not hold a table of tensors")
    return shard
