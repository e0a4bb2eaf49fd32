"""The memory of serving a model: weights, KV cache, and the activations of the largest step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.plan.formats import (
    KVFormat,
    WeightFormat,
    kv_bytes_per_token,
    kv_format,
    weight_bytes,
    weight_format,
)
from corral.plan.workload import Part, check_at_least_one, check_length, divide_up


@dataclass(frozen=True)
class Inference:
    """`batch` sequences of `context` tokens each (prompt and answer) held in the KV cache at once.

    `dtype` None means the dtype of the model's configuration; `kv_dtype` None the dtype of the activations:
    float32 with float32 weights, else bfloat16. Prompts are read in chunks of at most `prefill_chunk` tokens.
    Several devices form one tensor-parallel group.
    """

    context: int
    batch: int = 1
    dtype: str | None = None
    kv_dtype: str | None = None
    prefill_chunk: int = 2048

    @property
    def length(self) -> int:
        return self.context

    @property
    def length_flag(self) -> str:
        return "--context"

    def resized(self, *, length: int | None = None, batch: int | None = None) -> Inference:
        return replace(self, context=length or self.context, batch=batch or self.batch)

    def weights_as(self, config: LlamaConfig) -> WeightFormat:
        """The format of the weights."""
        return weight_format(self.dtype or config.dtype)

    def kv_as(self, config: LlamaConfig) -> KVFormat:
        """The format of the cached keys and values."""
        if self.kv_dtype is not None:
            return kv_format(self.kv_dtype)
        return kv_format("float32" if self.weights_as(config).width == 4 else "bfloat16")

    def resolved(self, config: LlamaConfig) -> Inference:
        return replace(self, dtype=self.weights_as(config).name, kv_dtype=self.kv_as(config).name)

    def check(self, config: LlamaConfig, devices: int) -> None:
        check_at_least_one("--batch", self.batch)
        check_at_least_one("--prefill-chunk", self.prefill_chunk)
        check_length(config, self.context, "--context")
        self.weights_as(config)
        self.kv_as(config)
        if not can_share(config, devices):
            raise PlanError(
                f"{devices} devices cannot share {config.num_attention_heads} attention heads and "
                f"{config.num_key_value_heads} KV heads evenly; use {_shares(config)} devices"
            )

    def parts(self, config: LlamaConfig, devices: int) -> tuple[Part, ...]:
        form, cache = self.weights_as(config), self.kv_as(config)
        kv_heads = max(1, config.num_key_value_heads // devices)
        per_token = kv_bytes_per_token(config, cache, kv_heads)
        tokens = max(min(self.prefill_chunk, self.batch * self.context), self.batch)
        return (
            Part("weights", weight_bytes(config, form).sharded(devices), form.name),
            Part(
                "kv_cache",
                self.batch * self.context * per_token,
                f"{self.batch} x {self.context:,} tokens x {per_token:,} bytes, {cache.name}",
            ),
            Part(
                "activations",
                step_bytes(config, tokens, self.batch, form.width, devices),
                f"a step of {tokens:,} tokens, logits of {self.batch}",
            ),
        )

    def savings(self, config: LlamaConfig) -> Iterator[tuple[Mapping[str, str], Inference]]:
        form, cache = self.weights_as(config), self.kv_as(config)
        ladder = ("bfloat16", "int8", "int4") if form.name == "float32" else ("int8", "int4")
        total = weight_bytes(config, form).total
        smaller = [name for name in ladder if weight_bytes(config, weight_format(name)).total < total]
        eight_bit_cache = kv_bytes_per_token(config, kv_format("int8")) < kv_bytes_per_token(config, cache)
        if eight_bit_cache:
            yield {"--kv-dtype": "int8"}, replace(self, kv_dtype="int8")
        for name in smaller:
            yield {"--dtype": name}, replace(self, dtype=name)
        if self.prefill_chunk > 256:
            yield {"--prefill-chunk": "256"}, replace(self, prefill_chunk=256)
        for name in smaller if eight_bit_cache else ():
            yield {"--dtype": name, "--kv-dtype": "int8"}, replace(self, dtype=name, kv_dtype="int8")


def can_share(config: LlamaConfig, devices: int) -> bool:
    """Whether a tensor-parallel group of this size gets whole heads.

    Beyond the number of KV heads each device keeps a copy of one KV head: the cache shrinks no further.
    """
    kv_heads = config.num_key_value_heads
    whole_kv_heads = kv_heads % devices == 0 or devices % kv_heads == 0
    return config.num_attention_heads % devices == 0 and whole_kv_heads


def step_bytes(config: LlamaConfig, tokens: int, rows: int, width: int, devices: int = 1) -> int:
    """Bytes alive at once in the largest moment of a step over `tokens` tokens, of which `rows` get logits.

    The residual stream and its normed copy are always there. With them live either the attention's q, k, v
    and output, or the MLP's gate, up and product, or the logits: in the width of the activations, then in
    float32, then sorted by the sampler in float32.
    """
    q_size = config.num_attention_heads * config.head_dim // devices
    kv_size = max(1, config.num_key_value_heads // devices) * config.head_dim
    attention = (2 * q_size + 2 * kv_size) * tokens * width
    mlp = 3 * divide_up(config.intermediate_size, devices) * tokens * width
    logits = rows * config.vocab_size * (width + 4 + 4)
    return 2 * config.hidden_size * tokens * width + max(attention, mlp, logits)


def _shares(config: LlamaConfig) -> str:
    counts = [n for n in range(1, config.num_attention_heads + 1) if can_share(config, n)]
    return ", ".join(str(n) for n in counts[:-1]) + f" or {counts[-1]}" if len(counts) > 1 else "1"
