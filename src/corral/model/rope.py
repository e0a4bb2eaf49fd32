"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864) and the ways to stretch them.

Queries and keys are laid out as in Hugging Face's checkpoints: dimension i pairs with i + head_dim / 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corral.model.config import LlamaConfig, RopeScaling


def inverse_frequencies(config: LlamaConfig, context_length: int | None = None) -> Tensor:
    """Radians per position of each pair of dimensions: float32 [head_dim / 2].

    Scaling of kind "dynamic" depends on the length in use; here that is `context_length`, the context that
    the model is run with, so that a token's rotation never depends on what else is in its batch. Up to
    `max_position_embeddings` it is the unscaled rotation.
    """
    scaling = config.rope_scaling
    theta = config.rope_theta
    if scaling is not None and scaling.kind == "dynamic":
        theta = _dynamic_theta(config, scaling, context_length or 0)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (theta**exponents)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    assert scaling.kind == "llama3", scaling.kind
    return _llama3(frequencies, scaling)


def rotation(inverse: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions [T]: two float32 tensors [T, head_dim / 2]."""
    angles = positions.float()[:, None] * inverse[None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates queries or keys [T, heads, head_dim] by their positions; computes in the type of `x`."""
    first, second = x.chunk(2, dim=-1)  # [T, heads, head_dim / 2] each
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders rows of a q or k projection [heads * head_dim, ...] from Meta's pairs to Hugging Face's.

    Meta rotates dimension 2i with 2i + 1; here i is rotated with i + head_dim / 2.
    """
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # [heads, head_dim / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(weight.shape)


def halves_to_interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders rows of a q or k projection from Hugging Face's pairs to Meta's, which GGUF keeps too.

    The inverse of `interleaved_to_halves`.
    """
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])  # [heads, 2, head_dim / 2, ...]
    return halves.transpose(1, 2).reshape(weight.shape)


def _dynamic_theta(config: LlamaConfig, scaling: RopeScaling, context_length: int) -> float:
    """NTK-aware scaling: a base at which the slowest pair spans the longer context."""
    trained = config.max_position_embeddings
    length = max(context_length, trained)
    growth = scaling.factor * length / trained - (scaling.factor - 1)
    return float(config.rope_theta * growth ** (config.head_dim / (config.head_dim - 2)))


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule (Meta's reference network, `apply_scaling`)."""
    trained = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((trained / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
