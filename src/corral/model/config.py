"""The shape of a Llama-architecture model, read from and written to Hugging Face's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from corral.errors import ConfigError

# No model comes near; beyond them a damaged file would ask for all memory there is.
_LARGEST, _MOST_LAYERS = 2**31 - 1, 10_000

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that the model was first trained on.

    `kind` is one of "linear", "dynamic" (NTK-aware, by the length in use) and "llama3" (Llama 3.1's rule:
    long wavelengths divided by `factor`, short ones kept, a linear blend between).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> RopeScaling | None:
        """Reads the `rope_scaling` (or, since transformers 5, `rope_parameters`) object of a config.json.

        Raises:
            ConfigError: the type is unknown to Corral, or one of its fields is missing or makes no sense.
        """
        kind = fields.get("rope_type", fields.get("type", "default"))
        if kind == "default":
            return None
        if kind not in ("linear", "dynamic", "llama3"):
            raise ConfigError(
                f"config.json: rope_scaling.rope_type is {kind!r}; "
                "Corral knows default, linear, dynamic and llama3"
            )
        factor = _positive(fields, "factor", where="rope_scaling.")
        if kind != "llama3":
            return cls(kind, factor)
        scaling = cls(
            kind,
            factor,
            _positive(fields, "low_freq_factor", where="rope_scaling."),
            _positive(fields, "high_freq_factor", where="rope_scaling."),
            int(_positive(fields, "original_max_position_embeddings", where="rope_scaling.")),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ConfigError(
                "config.json: rope_scaling.high_freq_factor must be greater than rope_scaling.low_freq_factor"
            )
        return scaling

    def to_hf(self) -> dict[str, Any]:
        """The `rope_scaling` object of a config.json."""
        fields: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind == "llama3":
            fields["low_freq_factor"] = self.low_freq_factor
            fields["high_freq_factor"] = self.high_freq_factor
            fields["original_max_position_embeddings"] = self.original_max_position_embeddings
        return fields


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama-architecture model. Field names are those of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value, largest = getattr(self, name), _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                raise ConfigError(
                    f"config.json: {name} is {value!r}; it must be a whole number from 1 to {largest}"
                )
        for name in ("rms_norm_eps", "rope_theta"):
            _positive(vars(self), name)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config.json: num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"config.json: head_dim is {self.head_dim}; rotary embeddings need an even number"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"config.json: torch_dtype is {self.dtype!r}; Corral knows {', '.join(DTYPES)}")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> LlamaConfig:
        """Reads a config.json as written by transformers 4 or 5.

        Raises:
            ConfigError: another architecture, or a field that is missing, contradictory or unsupported.
        """
        if not isinstance(fields, Mapping):
            raise ConfigError("config.json must hold a JSON object")
        _require_llama(fields)
        hidden_size = _whole(fields, "hidden_size")
        heads = _whole(fields, "num_attention_heads")
        head_dim = _whole(fields, "head_dim", default=hidden_size // heads)
        if fields.get("head_dim") is None and hidden_size % heads:
            raise ConfigError(
                f"config.json: hidden_size ({hidden_size}) is not a multiple of "
                f"num_attention_heads ({heads}), and head_dim is not given"
            )
        rope = {**_object(fields, "rope_scaling"), **_object(fields, "rope_parameters")}
        theta = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
        return cls(
            vocab_size=_whole(fields, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_whole(fields, "intermediate_size"),
            num_hidden_layers=_whole(fields, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_whole(fields, "num_key_value_heads", default=heads),
            head_dim=head_dim,
            max_position_embeddings=_whole(fields, "max_position_embeddings", default=2048),
            rms_norm_eps=_positive(fields, "rms_norm_eps", default=1e-6),
            rope_theta=_positive({"rope_theta": theta}, "rope_theta"),
            rope_scaling=RopeScaling.from_hf(rope),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            attention_bias=bool(fields.get("attention_bias", False)),
            mlp_bias=bool(fields.get("mlp_bias", False)),
            bos_token_id=_token_id(fields, "bos_token_id"),
            eos_token_ids=token_ids(fields, "eos_token_id"),
            pad_token_id=_token_id(fields, "pad_token_id"),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch."),
        )

    def to_hf(self) -> dict[str, Any]:
        """A config.json that transformers 4 and 5 both read."""
        eos = list(self.eos_token_ids)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_hf() if self.rope_scaling else None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else (eos or None),
            "pad_token_id": self.pad_token_id,
            "torch_dtype": self.dtype,
            "use_cache": True,
        }

    @property
    def num_parameters(self) -> int:
        """Trainable parameters; a tied head is counted once."""
        q_size = self.num_attention_heads * self.head_dim
        kv_size = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * q_size + 2 * kv_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        if self.attention_bias:
            attention += q_size + 2 * kv_size + self.hidden_size
        if self.mlp_bias:
            mlp += 2 * self.intermediate_size + self.hidden_size
        layer = attention + mlp + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + self.hidden_size + embeddings

    def with_dtype(self, dtype: str) -> LlamaConfig:
        """The same shape stored in another floating-point type."""
        return replace(self, dtype=dtype)


def token_ids(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Reads a field that may be absent, null, one token id, or a list of token ids."""
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise ConfigError(f"config.json: {name} is {value!r}; it must be a token id or a list of token ids")
    return tuple(ids)


def _require_llama(fields: Mapping[str, Any]) -> None:
    model_type = fields.get("model_type", "llama")
    if model_type != "llama":
        raise ConfigError(
            f"config.json: model_type is {model_type!r}; Corral runs Llama models (model_type llama)"
        )
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act is {fields['hidden_act']!r}; Corral knows silu")
    nested = _object(fields, "rope_parameters").get("partial_rotary_factor")
    rotary = fields.get("partial_rotary_factor") or nested
    if rotary not in (None, 1, 1.0):
        raise ConfigError(f"config.json: partial_rotary_factor is {rotary!r}; Corral knows only 1.0")


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object that may be absent or null."""
    value = fields.get(name) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {name} is {value!r}; it must be an object")
    return value


def _whole(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json: {name} is missing")
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {name} is {value!r}; it must be a whole number of at least 1")
    return value


def _positive(fields: Mapping[str, Any], name: str, default: float | None = None, where: str = "") -> float:
    value = fields.get(name, default)
    if value is None:
        raise ConfigError(f"config.json: {where}{name} is missing")
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigError(f"config.json: {where}{name} is {value!r}; it must be a positive number")
    return float(value)


def _token_id(fields: Mapping[str, Any], name: str) -> int | None:
    ids = token_ids(fields, name)
    return ids[0] if ids else None
