"""A network with random weights, made where it is to run: a benchmark needs no files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corral.model.config import LlamaConfig
from corral.model.llama import Llama

_POOL = 1_000_003  # prime, so that no two rows of a matrix are alike


def random_llama(config: LlamaConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Llama:
    """A network of random weights in the range in which activations keep their size.

    The same random numbers are used over and over: to make a new one for each weight of a large model would
    take minutes.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(_POOL, generator=generator).to(device)
    model = Llama.on_meta(config)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        if values.dim() == 1:
            values.fill_(0.0 if leaf == "bias" else 1.0)
        else:
            _fill(values, pool / parameter.shape[-1] ** 0.5)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.inverse_frequencies = model.inverse_frequencies.to(device)
    return model.requires_grad_(False).eval()


def _fill(values: Tensor, pool: Tensor) -> None:
    """Copies the pool again and again."""
    flat = values.view(-1)
    for start in range(0, len(flat), len(pool)):
        piece = flat[start : start + len(pool)]
        piece.copy_(pool[: len(piece)])
