"""AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) of groups of parameters: what is kept, and a step.

What is not kept as it is computed with is worked on in stretches of bounded size, so that no step needs more
memory than some of them. The arithmetic is in float32, whatever the types of what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from corral.tune.config import OptimizerConfig

_STRETCH = {"cpu": 2**20, "cuda": 2**26}  # numbers: near the cache's size, and enough to fill the device


@dataclass(frozen=True)
class StepSize:
    """How far a step goes.

    Attributes:
        number: of the step, from 1: moments are biased towards zero in the first ones.
        lr: the learning rate.
        gradient_scale: what gradients are multiplied with first.
    """

    number: int
    lr: float
    gradient_scale: float = 1.0


class Group(Protocol):
    """What AdamW keeps of some parameters, and how it steps."""

    def update(self, gradients: Mapping[str, Tensor], size: StepSize) -> None:
        """Changes parameters by their gradients, flat and by name, which may be overwritten."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors that are kept, themselves, as `parameter.what`."""
        ...


class _Kept(NamedTuple):
    stored: Tensor
    copy: Tensor | None
    average: Tensor
    square: Tensor


class _Stretch(NamedTuple):
    """A stretch of a parameter as it is computed with, all of one type, and the `results` to be rounded to
    where they are kept."""

    weights: Tensor
    gradient: Tensor
    average: Tensor
    square: Tensor
    results: tuple[tuple[Tensor, Tensor], ...] = ()


class FloatGroup:
    """Parameters with moments as floats, shaped, and spread over processes, as they are.

    Args:
        parameters: by name.
        config: the numbers of AdamW.
        decay: the share of the learning rate by which weights shrink in a step.
        dtype: of the moments.
        copies: whether 16-bit weights have a float32 copy. It is what is trained then, and the weights are
            always the nearest numbers to it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: OptimizerConfig,
        decay: float,
        dtype: torch.dtype,
        *,
        copies: bool,
    ) -> None:
        self._config, self._decay = config, decay
        self._kept: dict[str, _Kept] = {}
        for name, parameter in parameters.items():
            stored = parameter.detach()
            copy = stored.float() if copies and stored.dtype != torch.float32 else None
            average, square = (torch.zeros_like(stored, dtype=dtype) for _ in range(2))
            self._kept[name] = _Kept(stored, copy, average, square)

    def update(self, gradients: Mapping[str, Tensor], size: StepSize) -> None:
        together: list[_Stretch] = []
        numbers = 0
        for name, gradient in gradients.items():
            for stretch in self._stretches(self._kept[name], gradient, size.gradient_scale):
                together.append(stretch)
                numbers += len(stretch.weights) if stretch.results else 0
                if numbers >= stretch_size(gradient):
                    self._step(together, size)
                    together, numbers = [], 0
        self._step(together, size)

    def state(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, kept in self._kept.items():
            named |= {f"{name}.exp_avg": kept.average, f"{name}.exp_avg_sq": kept.square}
            if kept.copy is not None:
                named[f"{name}.float32"] = kept.copy
        return named

    def _stretches(self, kept: _Kept, gradient: Tensor, scale: float) -> Iterator[_Stretch]:
        stored, average, square = flat(kept.stored), flat(kept.average), flat(kept.square)
        trained = stored if kept.copy is None else flat(kept.copy)
        types = {tensor.dtype for tensor in (stored, trained, gradient, average, square)}
        if len(types) == 1:
            yield _Stretch(stored, gradient.mul_(scale), average, square)
            return
        for part in parts(stored):
            exact = [tensor[part].float() for tensor in (trained, average, square)]
            results = list(zip((stored[part], average[part], square[part]), exact, strict=True))
            rounded = tuple((to, result) for to, result in results if to.dtype != torch.float32)
            yield _Stretch(exact[0], gradient[part].float() * scale, exact[1], exact[2], rounded)

    def _step(self, stretches: list[_Stretch], size: StepSize) -> None:
        if not stretches:
            return
        weights, gradients, averages, squares, results = map(list, zip(*stretches, strict=True))
        before = torch.full((len(stretches),), size.number - 1.0, device=weights[0].device)
        adamw(
            weights,
            gradients,
            averages,
            squares,
            [],
            list(before.unbind()),
            fused=True,
            amsgrad=False,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            lr=size.lr,
            weight_decay=self._decay,
            eps=self._config.eps,
            maximize=False,
        )
        for pairs in results:
            for kept, result in pairs:
                kept.copy_(result)


def flat(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, as a vector in the same memory."""
    return local(tensor).view(-1)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is spread over several (a DTensor), or the tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def stretch_size(tensor: Tensor) -> int:
    """How many numbers are worked on at once on a tensor's device."""
    return _STRETCH.get(tensor.device.type, _STRETCH["cpu"])


def parts(vector: Tensor) -> Iterator[slice]:
    """The stretches of a vector that are worked on at once."""
    size = stretch_size(vector)
    for start in range(0, len(vector), size):
        yield slice(start, min(start + size, len(vector)))
