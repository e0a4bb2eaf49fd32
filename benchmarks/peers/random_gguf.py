"""A GGUF file of Llama 3.1 8B's shape with random weights, written in the format that is wanted.

Nothing is quantized: the blocks themselves are random. Formats as in ggml's `ggml-common.h`: a Q4_0 block is
a float16 scale and 32 nibbles; a Q6_K block is 128 bytes of low bits, 64 of high bits, 16 int8 scales and a
float16 scale for 256 weights. The head is in Q6_K, as in the Q4_0 files that llama.cpp makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from corral.model.config import LlamaConfig
from corral.model.presets import find_preset

Q4_0, Q6_K = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q6_K
F32 = gguf.GGMLQuantizationType.F32
Bytes = NDArray[np.uint8]
Tensor = tuple[str, gguf.GGMLQuantizationType, tuple[int, ...]]

_POOL = 100_003  # blocks; prime, so that no two rows of a matrix are alike
_CONTROL, _NORMAL = 3, 1


def write_random(path: Path, model: str = "llama-3.1-8b") -> None:
    """Writes the file, one tensor in memory at a time."""
    config = _shape(model)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config)
    tensors = list(_tensors(config))
    for name, kind, shape in tensors:
        stored = _bytes_shape(kind, shape)
        itemsize = 4 if kind == F32 else 1
        writer.add_tensor_info(
            name,
            stored,
            np.dtype(np.float32 if kind == F32 else np.uint8),
            int(np.prod(stored)) * itemsize,
            None if kind == F32 else kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools = {Q4_0: _q4_0_blocks(config.hidden_size), Q6_K: _q6_k_blocks(config.hidden_size)}
    for _, kind, shape in tensors:
        writer.write_tensor_data(_data(kind, shape, pools))
    writer.close()


def _shape(model: str) -> LlamaConfig:
    preset = find_preset(model)
    assert preset is not None, f"{model} is no preset"
    return preset.config


def _tensors(config: LlamaConfig) -> Iterator[Tensor]:
    hidden, middle = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    yield "token_embd.weight", Q4_0, (config.vocab_size, hidden)
    yield "rope_freqs.weight", F32, (config.head_dim // 2,)
    for layer in range(config.num_hidden_layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", F32, (hidden,)
        yield block + "attn_q.weight", Q4_0, (config.num_attention_heads * config.head_dim, hidden)
        yield block + "attn_k.weight", Q4_0, (kv, hidden)
        yield block + "attn_v.weight", Q4_0, (kv, hidden)
        yield block + "attn_output.weight", Q4_0, (hidden, config.num_attention_heads * config.head_dim)
        yield block + "ffn_norm.weight", F32, (hidden,)
        yield block + "ffn_gate.weight", Q4_0, (middle, hidden)
        yield block + "ffn_up.weight", Q4_0, (middle, hidden)
        yield block + "ffn_down.weight", Q4_0, (hidden, middle)
    yield "output_norm.weight", F32, (hidden,)
    yield "output.weight", Q6_K, (config.vocab_size, hidden)


def _bytes_shape(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as it is stored: the last dimension in bytes, but for float32."""
    if kind == F32:
        return shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return (*shape[:-1], shape[-1] // block * size)


def _data(
    kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], pools: dict[object, Bytes]
) -> NDArray[np.uint8] | NDArray[np.float32]:
    if kind == F32:
        return np.ones(shape, np.float32)
    stored = _bytes_shape(kind, shape)
    blocks: Bytes = np.resize(pools[kind], int(np.prod(stored))).reshape(stored)
    return blocks


def _q4_0_blocks(columns: int) -> Bytes:
    """Nibbles of -8 to 7, scaled so that a row keeps the size of what it is multiplied with."""
    chance = np.random.default_rng(0)
    blocks = chance.integers(0, 256, (_POOL, 18), np.uint8)
    blocks[:, :2] = _scales(chance, columns, spread=4.6)
    return blocks.reshape(-1)


def _q6_k_blocks(columns: int) -> Bytes:
    """6-bit weights of -32 to 31 with int8 scales of up to 31."""
    chance = np.random.default_rng(1)
    blocks = chance.integers(0, 256, (_POOL, 210), np.uint8)
    blocks[:, 192:208] = chance.integers(16, 32, (_POOL, 16), np.uint8)
    blocks[:, 208:] = _scales(chance, columns, spread=18.5 * 24)
    return blocks.reshape(-1)


def _scales(chance: np.random.Generator, columns: int, spread: float) -> Bytes:
    scales = chance.uniform(0.5, 1.5, _POOL) / (spread * columns**0.5)
    halves: Bytes = scales.astype(np.float16).view(np.uint8).reshape(_POOL, 2)
    return halves


def _describe(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_name("Random weights of Llama 3.1 8B's shape")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens, merges = vocabulary(config.vocab_size)
    control = sum(token.startswith("<|") for token in tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([_NORMAL] * (len(tokens) - control) + [_CONTROL] * control)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - control)
    writer.add_eos_token_id(len(tokens) - control + 1)


def vocabulary(size: int, control: int = 256) -> tuple[list[str], list[str]]:
    """A byte-level vocabulary that means nothing but is complete: bytes, pairs of them, and triples.

    Every token but the bytes is the result of one merge. The last `control` tokens are control tokens.
    """
    symbols = [chr(code) for code in _printable()]
    pairs = [first + second for first, second in product(symbols, symbols)]
    merges = [f"{first} {second}" for first, second in product(symbols, symbols)]
    merges += [f"{pair} {symbol}" for pair, symbol in product(pairs, symbols[: size // len(pairs)])]
    merges = merges[: size - control - len(symbols)]
    tokens = symbols + [merge.replace(" ", "") for merge in merges]
    return tokens + [f"<|control_{number}|>" for number in range(control)], merges


def _printable() -> list[int]:
    """GPT-2's stand-ins for the 256 bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [256 + number for number in range(256 - len(printable))]
