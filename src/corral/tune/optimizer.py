"""The optimizer: clips gradients, refuses what would destroy the weights, and steps by AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from corral.tune import adamw_8bit
from corral.tune.adamw import FloatGroup, Group, StepSize, local, parts
from corral.tune.config import OptimizerConfig, RunConfig
from corral.tune.errors import TuneError
from corral.tune.matching import require_match

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MOST_SKIPPED = 3
"""Steps in a row whose gradients are not finite, after which a run ends."""

_ROW = 4096  # numbers whose squares are summed in float32

_COUNTS = ("steps", "skipped", "skipped_in_a_row")


def learning_rate(config: RunConfig) -> float:
    """The highest learning rate of a run: what is set, or what suits what is trained."""
    if config.optimizer.lr is not None:
        return config.optimizer.lr
    usual = 2e-5 if config.parameters.method == "full" else 2e-4
    return usual / 10 if config.objective in ("dpo", "kto", "orpo") else usual


class Optimizer:
    """AdamW over named parameters, which may be spread over processes (DTensors).

    A step whose gradients are not finite changes nothing: neither weights nor moments nor the number of
    steps. One such step happens to healthy runs; after three in a row the run is refused, with the weights
    of the last good step. (Mixed precision with loss scaling treats them likewise. Without it, clipping by
    such a norm would make every weight not a number at once.)

    With float32 moments, 16-bit weights have a float32 copy: it is trained as a float32 model is, and the
    weights are its nearest numbers. With bfloat16 moments they are trained as they are stored: steps much
    smaller than a weight are lost, and a second moment that has grown hardly shrinks again. That is for
    where memory is short. So are 8-bit moments, without a copy too; some steps are lost there likewise.
    Vectors (norms, biases, magnitudes) do not decay.

    Args:
        parameters: what is trained, by name; their gradients are what `step` finds in them.
        config: the numbers of AdamW.

    Attributes:
        steps: steps that changed the weights.
        skipped: steps that did not, since their gradients were not finite.

    Raises:
        TuneError: 8-bit moments are wanted, and bitsandbytes is not installed.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimizerConfig) -> None:
        self._parameters, self._config = dict(parameters), config
        self.steps = self.skipped = self._skipped_in_a_row = 0
        self._groups = [
            (tuple(members), self._group(members, eight_bit, config.weight_decay if decays else 0.0))
            for eight_bit in (False, True)
            for decays in (False, True)
            if (members := self._members(eight_bit, decays))
        ]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One step at a learning rate; gives the norm of all gradients before they were clipped.

        Gradients may be overwritten. A parameter without one stays as it is.

        Raises:
            TuneError: the gradients of several steps in a row were not finite.
        """
        gradients = {
            name: _like(parameter.grad, parameter)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        norm = global_norm(gradients.values())
        if not math.isfinite(norm):
            self._skip(norm)
            return norm
        self.steps += 1
        self._skipped_in_a_row = 0
        size = StepSize(self.steps, lr, self._scale(norm))
        for names, group in self._groups:
            group.update({name: _vector(gradients[name]) for name in names if name in gradients}, size)
        return norm

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """All that a step depends on beside weights and gradients: the tensors themselves, by name."""
        counts = (self.steps, self.skipped, self._skipped_in_a_row)
        state = {name: torch.tensor(count) for name, count in zip(_COUNTS, counts, strict=True)}
        for _, group in self._groups:
            state |= group.state()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes on a state, bit for bit.

        Raises:
            TuneError: it is that of an optimizer of other parameters or settings; nothing has changed then.
        """
        mine = self.state_dict()
        require_match(mine, state, "the optimizer's state")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.steps, self.skipped, self._skipped_in_a_row = (int(state[name]) for name in _COUNTS)

    def _members(self, eight_bit: bool, decays: bool) -> dict[str, Tensor]:
        return {
            name: parameter
            for name, parameter in self._parameters.items()
            if self._in_8_bits(parameter) == eight_bit and (parameter.dim() > 1) == decays
        }

    def _in_8_bits(self, parameter: Tensor) -> bool:
        return self._config.name == "adamw_8bit" and local(parameter.detach()).numel() >= adamw_8bit.LEAST

    def _group(self, members: Mapping[str, Tensor], eight_bit: bool, decay: float) -> Group:
        if eight_bit:
            return adamw_8bit.EightBitGroup(members, self._config, decay)
        copies = self._config.states == "float32" and self._config.name == "adamw"
        exact = self._config.states == "float32" or self._config.name == "adamw_8bit"
        dtype = torch.float32 if exact else torch.bfloat16
        return FloatGroup(members, self._config, decay, dtype, copies=copies)

    def _scale(self, norm: float) -> float:
        """What shortens gradients of a norm to the longest allowed, as `torch.nn.utils.clip_grad_norm_`."""
        most = self._config.max_grad_norm
        return min(1.0, most / (norm + 1e-6)) if most else 1.0

    def _skip(self, norm: float) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise TuneError(
                f"the gradients of {self._skipped_in_a_row} steps in a row are not finite (their norm is "
                f"{norm}), and the weights stay as after {self.steps} good steps; lower optimizer.lr, or "
                "look at the data of these steps"
            )


@torch.no_grad()
def global_norm(gradients: Iterable[Tensor]) -> float:
    """The Euclidean norm over all gradients, summed in float32 and float64.

    Of gradients that are spread over processes (DTensors), each part counts once: all processes have to call
    this together, and get the same.
    """
    squares: dict[object, list[Tensor]] = {}
    examples: dict[object, Tensor] = {}
    room = torch.empty(0)
    for gradient in gradients:
        key = (gradient.device_mesh, gradient.placements) if _is_spread(gradient) else gradient.device
        examples[key], vector = gradient, _vector(gradient)
        sums = squares.setdefault(key, [torch.zeros((), dtype=torch.float64, device=vector.device)])
        for part in parts(vector):
            numbers = vector[part]
            if numbers.device.type == "cpu" and numbers.dtype != torch.float32:
                # The same memory for all: many short-lived pieces would leave holes that nothing fits into.
                room = room if len(room) >= len(numbers) else torch.empty(len(numbers))
                numbers = room[: len(numbers)].copy_(numbers)
            sums.append(_squares(numbers))
    totals = {key: torch.stack(sums).sum() for key, sums in squares.items()}
    return math.sqrt(sum(_over_processes(total, examples[key]) for key, total in totals.items()))


def _squares(numbers: Tensor) -> Tensor:
    """The sum of the squares of a vector, float64.

    Rows of it are summed in float32, and short: over a million numbers float32 is 3e-5 off, as much as no two
    ways to cut them share.
    """
    even = len(numbers) // _ROW * _ROW
    rows = torch.linalg.vector_norm(numbers[:even].view(-1, _ROW), dim=1, dtype=torch.float32)
    rest = torch.linalg.vector_norm(numbers[even:], dtype=torch.float32)
    total: Tensor = rows.double().square().sum() + rest.double().square()
    return total


def _over_processes(total: Tensor, example: Tensor) -> float:
    """A sum over this process's part of tensors, over all parts of them."""
    if not _is_spread(example):
        return float(total)
    from torch.distributed import all_reduce

    mesh = example.device_mesh
    total = total.to(mesh.device_type)
    for dim, place in enumerate(example.placements):
        if not place.is_replicate():
            all_reduce(total, group=mesh.get_group(dim))
    return float(total)


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient spread over processes as its parameter is."""
    if _is_spread(gradient) and _is_spread(parameter) and gradient.placements != parameter.placements:
        return gradient.redistribute(placements=parameter.placements)
    return gradient


def _vector(gradient: Tensor) -> Tensor:
    return local(gradient).reshape(-1)


def _is_spread(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "placements")
