"""Weights for a model whose parts are spread over processes, a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from corral.model.llama import Llama
from corral.scale.tensors import local, part_of


@torch.no_grad()
def fill(
    model: Llama, tensors: Iterable[tuple[str, Tensor]], device: torch.device, *, offload: bool = False
) -> None:
    """Gives a model on the meta device its weights: of each tensor the part that is this process's.

    Args:
        model: split and sharded as it is to be.
        tensors: all parameters of the model by name, whole, a tied head left out; of those that are mapped
            from a file only the parts that are needed are read.
        device: what the model computes on.
        offload: whether the parts lie in the CPU's memory.
    """
    frequencies = model.inverse_frequencies  # the one tensor that is there already
    model.to_empty(device="cpu" if offload else device)
    model.inverse_frequencies = frequencies.to(device)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for name, tensor in tensors:
        mine = local(parameters[name])
        mine.copy_(part_of(tensor, parameters[name]))
        missing.discard(name)
    assert not missing, f"no weights for {min(missing)}"
