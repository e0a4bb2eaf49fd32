"""Small models with random weights."""

from __future__ import annotations

import torch

from corral.model.config import LlamaConfig
from corral.model.llama import Llama

SMALL = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    dtype="float32",
)
# Fits the tokenizer of tests.text.vocabularies.chatml_tokenizer_json.
SMALL_CHAT = LlamaConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    eos_token_ids=(2,),
    dtype="float32",
)


def random_model(config: LlamaConfig, seed: int = 0) -> Llama:
    """A model with random weights of a size that keeps logits apart."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else noise / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False).eval()
