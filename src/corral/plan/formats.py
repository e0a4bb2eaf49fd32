"""How many bytes weights and cached keys and values take in each number format.

Quantized weight formats cover the matrices of the layers. Embedding, head, norms and biases stay in bfloat16,
as in the checkpoints that AWQ, GPTQ, compressed-tensors and bitsandbytes write by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.plan.shapes import embedding_parameters, linear_shapes, vector_parameters

Format = TypeVar("Format")


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix [out, in] is stored: `bits` for each element, and scales where it is quantized.

    Each output row may carry `row_bits`; each group of `group_size` elements of a row `group_bits`; and each
    256 groups `nested_bits` (bitsandbytes' double quantization). `group_size` None means no groups.
    """

    name: str
    bits: int
    quantized: bool = True
    row_bits: int = 0
    group_size: int | None = None
    group_bits: int = 0
    nested_bits: int = 0

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one matrix with its scales."""
        bits = rows * (columns * self.bits + self.row_bits)
        if self.group_size is not None:
            groups = rows * -(-columns // self.group_size)
            bits += groups * self.group_bits + -(-groups // 256) * self.nested_bits
        return -(-bits // 8)

    @property
    def width(self) -> int:
        """Bytes of each unquantized element, and of each activation computed with these weights."""
        return 2 if self.quantized else self.bits // 8


@dataclass(frozen=True)
class KVFormat:
    """How the cached key or value of one token and one head is stored: elements, and perhaps a scale."""

    name: str
    element_bytes: int
    scale_bytes: int = 0


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights: layer matrices with their scales, embedding and head, norms and biases."""

    matrices: int
    embeddings: int
    vectors: int

    @property
    def total(self) -> int:
        return self.matrices + self.embeddings + self.vectors

    def sharded(self, devices: int) -> int:
        """Bytes on one device of a tensor-parallel group: matrices and vocabulary split, vectors repeated."""
        return -(-self.matrices // devices) + -(-self.embeddings // devices) + self.vectors


WEIGHT_FORMATS: Mapping[str, WeightFormat] = {
    form.name: form
    for form in (
        WeightFormat("float32", 32, quantized=False),
        WeightFormat("bfloat16", 16, quantized=False),
        WeightFormat("float16", 16, quantized=False),
        WeightFormat("fp8", 8, row_bits=32),
        WeightFormat("int8", 8, row_bits=32),
        WeightFormat("int4", 4, group_size=128, group_bits=32),
        WeightFormat("nf4", 4, group_size=64, group_bits=8, nested_bits=32),
    )
}
KV_FORMATS: Mapping[str, KVFormat] = {
    form.name: form
    for form in (
        KVFormat("float32", 4),
        KVFormat("bfloat16", 2),
        KVFormat("float16", 2),
        KVFormat("fp8", 1),
        KVFormat("int8", 1, scale_bytes=2),
    )
}
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def weight_format(name: str) -> WeightFormat:
    """The weight format with this name; bf16, fp16 and fp32 are understood too. Raises PlanError."""
    return _choose(name, WEIGHT_FORMATS, "dtype")


def kv_format(name: str) -> KVFormat:
    """The KV cache format with this name; bf16, fp16 and fp32 are understood too. Raises PlanError."""
    return _choose(name, KV_FORMATS, "kv-dtype")


def weight_bytes(config: LlamaConfig, form: WeightFormat) -> WeightBytes:
    """Bytes of all weights in this format, scales included; see the module about what stays unquantized."""
    return WeightBytes(
        matrices=config.num_hidden_layers * _layer_bytes(config, form),
        embeddings=embedding_parameters(config) * form.width,
        vectors=vector_parameters(config) * form.width,
    )


def ideal_weight_bytes(config: LlamaConfig, form: WeightFormat) -> int:
    """Bytes if every parameter took exactly `form.bits` bits: no scales, nothing left unquantized.

    This is how model cards and launch posts count; no real 8-bit or 4-bit checkpoint is this small.
    """
    return -(-config.num_parameters * form.bits // 8)


def largest_unit_bytes(config: LlamaConfig, form: WeightFormat) -> int:
    """Bytes of the largest piece that sharded training gathers at once: a layer, or the embedding."""
    return max(_layer_bytes(config, form), config.vocab_size * config.hidden_size * form.width)


def kv_bytes_per_token(config: LlamaConfig, form: KVFormat, kv_heads: int | None = None) -> int:
    """Bytes that one token adds to the KV cache: a key and a value for each layer and KV head.

    `kv_heads` is the number of KV heads that one device holds; all of them by default.
    """
    heads = config.num_key_value_heads if kv_heads is None else kv_heads
    entry = config.head_dim * form.element_bytes + form.scale_bytes
    return 2 * config.num_hidden_layers * heads * entry


def _layer_bytes(config: LlamaConfig, form: WeightFormat) -> int:
    return sum(form.matrix_bytes(rows, columns) for rows, columns in linear_shapes(config).values())


def _choose(name: str, known: Mapping[str, Format], flag: str) -> Format:
    chosen = known.get(_SHORT_NAMES.get(name.lower(), name.lower()))
    if chosen is None:
        raise PlanError(f"--{flag} is {name!r}; use one of {', '.join(known)}")
    return chosen
