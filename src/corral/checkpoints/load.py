"""Puts a checkpoint's tensors into the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from corral.checkpoints.checkpoint import Checkpoint
from corral.errors import CheckpointError, RequestError
from corral.model.llama import Llama
from corral.quant import Weight
from corral.quant.compact import Compact, Family
from corral.quant.linear import replace_linear
from corral.quant.on_load import quantized

W = TypeVar("W", bound=Weight)

_IGNORED = ("rotary_emb.inv_freq",)  # buffers that old checkpoints carry along
_DENSE = ("model.embed_tokens.weight", "lm_head.weight")


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    context_length: int | None = None,
    *,
    as_stored: bool = False,
    quantize: str | None = None,
) -> Llama:
    """The network with the checkpoint's weights, ready to run.

    The network is built without memory and takes each tensor as it is read; a tensor that is already of the
    wanted type and on the wanted device is not copied. `dtype` defaults to the checkpoint's.

    Quantized matrices are dequantized, unless they are to stay `as_stored`: those of layers become
    `QuantizedLinear` then, which take no more memory than their codes and scales. The embedding and the head
    are dense always. `quantize` does that to the layers' matrices of a full-precision checkpoint: "int8",
    "int4", "nf4" or "fp8" (`corral.quant.on_load`).

    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape, or cannot be quantized; the
            message names it.
        RequestError: `quantize` is for a checkpoint that is quantized already.
    """
    config = checkpoint.config
    wanted = dtype or getattr(torch, config.dtype)
    model = Llama.on_meta(config, context_length)
    place = torch.device(device)
    shapes = _shapes(model)
    converted: dict[str, Tensor] | None = None
    stored = as_stored or quantize is not None
    weights = checked(checkpoint, model, checkpoint.weights() if stored else checkpoint.tensors())
    if quantize is not None:
        weights = quantizing(checkpoint, weights, quantize)
    for name, weight in weights:
        if not isinstance(weight, Tensor):
            if name not in _DENSE:
                _take_quantized(model, name, weight, place)
                continue
            weight = weight.dequantize(wanted)
        if weight.dtype == wanted and weight.device == place:
            _assign(model, name, weight)
            continue
        if stored:
            _assign(model, name, weight.to(place, wanted))
            continue
        if converted is None:
            # All at once, before the temporaries: taken between them, they would leave holes in the heap
            # that come to half the model.
            converted = {n: torch.empty(shape, dtype=wanted, device=place) for n, shape in shapes.items()}
        _assign(model, name, converted.pop(name).copy_(weight))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.inverse_frequencies = model.inverse_frequencies.to(place)
    return model.requires_grad_(False).eval()


def quantizing(
    checkpoint: Checkpoint, weights: Iterable[tuple[str, Weight]], scheme: str
) -> Iterator[tuple[str, Weight]]:
    """The weights of a full-precision checkpoint, those of the layers quantized as they come.

    Raises:
        RequestError: one is quantized already.
        CheckpointError: one holds what is not finite; either message names it.
    """
    for name, weight in weights:
        if not isinstance(weight, Tensor):
            raise RequestError(
                f"quantize is {scheme!r}, but {checkpoint.path} is quantized already: {name}; leave it out"
            )
        try:
            yield name, quantized(name, weight, scheme)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {name} cannot be quantized: {error}") from None


def checked(
    checkpoint: Checkpoint, model: Llama, weights: Iterable[tuple[str, W]]
) -> Iterator[tuple[str, W]]:
    """The weights of a checkpoint that belong to a network, which only lends its shapes.

    A tied head and what old checkpoints carry along are left out.

    Raises:
        CheckpointError: one is missing, unknown, or of the wrong shape; the message names it. What is missing
            is known at the end.
    """
    shapes = _shapes(model)
    missing = set(shapes)
    tied = model.config.tie_word_embeddings
    for name, weight in weights:
        if name.endswith(_IGNORED) or (name == "lm_head.weight" and tied):
            continue
        _check(name, tuple(weight.shape), shapes, checkpoint)
        missing.discard(name)
        yield name, weight
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} of the model's tensors, among them {min(missing)}"
        )


def _shapes(model: Llama) -> dict[str, torch.Size]:
    """Of the tensors that a checkpoint holds, by name."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def _check(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, torch.Size], checkpoint: Checkpoint
) -> None:
    if name not in shapes:
        raise CheckpointError(f"{checkpoint.path} holds {name}, which this model has no place for")
    if shape != tuple(shapes[name]):
        raise CheckpointError(
            f"{checkpoint.path}: {name} has shape {list(shape)}; "
            f"the configuration asks for {list(shapes[name])}"
        )


def _assign(model: Llama, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _take_quantized(model: Llama, name: str, weight: Family, device: torch.device) -> None:
    """Small codes are packed before they travel."""
    replace_linear(model, name.removesuffix(".weight"), Compact.of(weight).to(device))
