"""Packed networks of all kinds for tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from corral.kernels.library import Library, load
from corral.kernels.packed_llama import PackedLlama, pack_llama, pack_weights
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.quant import Affine, Codebook, Weight
from tests.random_models import SMALL, random_model

ODD = replace(
    SMALL,
    vocab_size=131,
    hidden_size=96,
    intermediate_size=160,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=2048,
    attention_bias=True,
    mlp_bias=True,
)
MODEL = replace(SMALL, hidden_size=128, head_dim=32, max_position_embeddings=2048)
TIED = replace(MODEL, tie_word_embeddings=True)


needs_native = pytest.mark.skipif(load() is None, reason="PyTorch computes here")
"""For tests of other rooms, which run on PyTorch alone too."""


def library() -> Library:
    """The native kernels: tests that need them fail without."""
    native = load()
    assert native is not None
    return native


def quantized(name: str, weight: torch.Tensor) -> Weight:
    """Every matrix in another form: those of one layer cannot be packed as one."""
    if weight.dim() == 1 or "embed" in name or "lm_head" in name:
        return weight
    if "v_proj" in name:
        return Affine.quantize(weight, bits=8, group_size=16)
    if "o_proj" in name or "down_proj" in name:
        return Affine.quantize(weight, bits=4, group_size=32, symmetric=False)
    if "up_proj" in name:
        return Codebook.quantize(weight, group_size=32)
    return Affine.quantize(weight, bits=4, group_size=32)


def quantized_pair(config: LlamaConfig, seed: int = 0) -> tuple[PackedLlama, Llama]:
    """A quantized network, and one of float32 with the weights that it stands for."""
    model = random_model(config, seed)
    weights = {name: quantized(name, weight) for name, weight in model.state_dict().items()}
    packed = pack_weights(library(), Llama.on_meta(config), weights.items(), torch.float32)
    packed.network.inverse_frequencies = model.inverse_frequencies
    plain = random_model(config, seed)
    names = (n for n, w in weights.items() if not isinstance(w, torch.Tensor) or w.dim() == 2)
    plain.load_state_dict({n: _floats(packed, weights[n], n) for n in names}, strict=False)
    return packed, plain


def packed(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> PackedLlama:
    """A network of random weights, packed as they are."""
    return pack_llama(library(), random_model(config).to(dtype))


def _floats(packed: PackedLlama, weight: Weight, name: str) -> torch.Tensor:
    if not isinstance(weight, torch.Tensor):
        return weight.dequantize()
    return packed.get_parameter(name) if "embed" in name or "lm_head" in name else weight
