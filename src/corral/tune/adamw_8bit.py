"""AdamW with moments in 8 bits (Dettmers et al., 2021, arXiv:2110.02861), by the kernels of bitsandbytes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from corral.tune.adamw import StepSize, flat, parts
from corral.tune.config import OptimizerConfig
from corral.tune.errors import TuneError

_BLOCK = 256  # numbers that share a scale
LEAST = 4096
"""Smaller parameters have float32 moments: so it is in bitsandbytes, and they cost nothing."""


class EightBitGroup:
    """Parameters with moments as codes of 8 bits, each 256 of them with a scale.

    The weights are trained as they are stored, without a copy in float32.

    Args:
        parameters: by name.
        config: the numbers of AdamW.
        decay: the share of the learning rate by which weights shrink in a step.

    Raises:
        TuneError: bitsandbytes is not installed, or too old.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimizerConfig, decay: float) -> None:
        self._config, self._decay, self._kernels = config, decay, _kernels()
        self._parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        self._state: dict[str, Tensor] = {}
        self._levels: dict[torch.device, tuple[Tensor, Tensor]] = {}
        for name, parameter in self._parameters.items():
            vector = flat(parameter)
            for moment in ("exp_avg", "exp_avg_sq"):
                self._state[f"{name}.{moment}"] = torch.zeros_like(vector, dtype=torch.uint8)
                blocks = -(-len(vector) // _BLOCK)
                scales = torch.zeros(blocks, dtype=torch.float32, device=vector.device)
                self._state[f"{name}.{moment}.scale"] = scales

    def update(self, gradients: Mapping[str, Tensor], size: StepSize) -> None:
        for name, gradient in gradients.items():
            weights = flat(self._parameters[name])
            for part in parts(weights):
                of_part = gradient[part].to(weights.dtype)
                self._update(name, weights[part], of_part, part, size)

    def state(self) -> dict[str, Tensor]:
        return dict(self._state)

    def _update(self, name: str, weights: Tensor, gradient: Tensor, part: slice, size: StepSize) -> None:
        blocks = slice(part.start // _BLOCK, -(-part.stop // _BLOCK))
        first, second = f"{name}.exp_avg", f"{name}.exp_avg_sq"
        signed, unsigned = self._levels_on(weights.device)
        self._kernels.optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            weights,
            self._state[first][part],
            self._state[second][part],
            *self._config.betas,
            0.0,  # a third moment's
            0.0,
            self._config.eps,
            size.number,
            size.lr,
            signed,
            unsigned,
            self._state[f"{first}.scale"][blocks],
            self._state[f"{second}.scale"][blocks],
            weight_decay=self._decay,
            gnorm_scale=size.gradient_scale,
        )

    def _levels_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The numbers that codes stand for, of the first and of the second moments."""
        if device not in self._levels:
            signed, unsigned = (self._kernels.create_dynamic_map(signed=sign) for sign in (True, False))
            self._levels[device] = signed.to(device), unsigned.to(device)
        return self._levels[device]


def _kernels() -> Any:
    advice = "pip install 'corral[bitsandbytes]', or set optimizer.name to adamw"
    try:
        kernels = importlib.import_module("bitsandbytes.functional")
    except ImportError:
        raise TuneError(f"optimizer.name is adamw_8bit, which needs bitsandbytes: {advice}") from None
    if not hasattr(kernels, "optimizer_update_8bit_blockwise"):
        raise TuneError(f"optimizer.name is adamw_8bit, and bitsandbytes is too old: {advice}")
    return kernels
