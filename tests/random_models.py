"""Small models with random weights."""

from __future__ import annotations

import torch

from corral.model.config import LlamaConfig
from corral.model.llama import Llama


def random_model(config: LlamaConfig, seed: int = 0) -> Llama:
    """A model with random weights of a size that keeps logits apart."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else noise / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False).eval()
