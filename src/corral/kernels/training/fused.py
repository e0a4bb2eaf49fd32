"""An ordinary `Llama` that computes with the kernels of training, for as long as it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corral.kernels.training import rows
from corral.kernels.training.kernels import TrainingKernels, takes
from corral.kernels.training.linear import linear, mm
from corral.model.llama import MLP, Attention, Linear, Llama, RMSNorm, gated
from corral.model.rope import rotate


@contextmanager
def fused(model: Llama, kernels: TrainingKernels | None) -> Iterator[None]:
    """While this lasts, the model's norms, gates, rotations and linear layers are calls of the kernels.

    What they do not take goes to torch as before: tensors on other devices or of other types, sharded ones,
    weights that are quantized. Without kernels nothing changes. Attention is passed to the model by its
    caller: `NativePackedCausal`. Values are those of torch but for the order of sums and fewer roundings.
    See `kernels.torch_on_one_thread` too.
    """
    undo = [
        _replace(module, name, function)
        for module in model.modules()
        for name, function in _replacements(module, kernels).items()
    ]
    try:
        yield
    finally:
        for undone in undo:
            undone()


def _replacements(module: nn.Module, kernels: TrainingKernels | None) -> dict[str, Callable[..., Tensor]]:
    """What of a module is replaced, by name."""
    if kernels is None:
        return {}
    if type(module) is RMSNorm:
        return {"forward": partial(_norm, kernels, module, module.forward)}
    if type(module) is Linear:
        return {"forward": partial(_linear, kernels, module), "mm": partial(mm, kernels)}
    if type(module) is MLP:
        return {"gated": partial(_gated, kernels)}
    if type(module) is Attention:
        return {"rotate": partial(_rotate, kernels)}
    return {}


def _replace(module: nn.Module, name: str, function: Callable[..., Tensor]) -> Callable[[], None]:
    """Gives a module what takes the place of its own; what takes that away again."""
    before = vars(module).get(name)
    setattr(module, name, function)

    def undo() -> None:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)

    return undo


def _norm(kernels: TrainingKernels, norm: RMSNorm, by_torch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return rows.rms_norm(kernels, x, norm.weight, norm.eps) if takes(x, norm.weight) else by_torch(x)


def _linear(kernels: TrainingKernels, layer: nn.Linear, x: Tensor) -> Tensor:
    if x.dim() != 2 or not takes(x, layer.weight):
        return F.linear(x, layer.weight, layer.bias)
    return linear(kernels, x, layer.weight, layer.bias)


def _gated(kernels: TrainingKernels, gate: Tensor, up: Tensor) -> Tensor:
    return rows.gated(kernels, gate, up) if takes(gate, up) else gated(gate, up)


def _rotate(kernels: TrainingKernels, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    native = takes(x) and takes(cos, sin) and cos.dtype == torch.float32
    return rows.rotate(kernels, x, cos, sin) if native else rotate(x, cos, sin)
