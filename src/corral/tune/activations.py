"""Activation checkpointing (Chen et al., 2016, arXiv:1604.06174), around layers from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from corral.model.llama import Llama

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""What costs more to compute again than to keep."""


def checkpoint_activations(model: Llama, kind: str) -> None:
    """Makes each layer compute its activations again in the backward pass.

    "full" keeps the layer's input only, "selective" also the results of matrix products and attention, which
    are most of the work and less than half of the memory; "none" keeps everything. Values and gradients are
    the same; dropout draws the same numbers again.
    """
    if kind == "none":
        return
    contexts = {"context_fn": _keeping_products} if kind == "selective" else {}
    for layer in model.model.layers:
        assert isinstance(layer, nn.Module)
        layer.forward = partial(_again, layer.forward, contexts)


def _again(forward: Callable[..., Any], contexts: dict[str, Any], *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, **contexts)


def _keeping_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]


def _policy(_: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
