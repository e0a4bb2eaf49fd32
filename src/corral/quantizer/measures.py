"""What quantizing costs, matrix by matrix and layer by layer.

An error is the sum of squares of what is off, over that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corral.model.llama import Layer
from corral.quant.algorithms.gptq import Hessian
from corral.quantizer.awq_layer import Factors, SearchResult
from corral.quantizer.layers import Windows, linear_of

_SAMPLE = 512  # tokens, as many as AutoAWQ searches for clipping on
_CHECKED = 8  # windows on which the outputs of a layer are compared


@dataclass(frozen=True)
class MatrixResult:
    """What quantizing a matrix costs.

    Attributes:
        name: within the layer.
        error: of its outputs on calibration text; of its weights where there is none.
        rtn_error: that of the nearest numbers, where the method is another.
    """

    name: str
    error: float
    rtn_error: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """What quantizing a layer costs.

    Attributes:
        matrices: one by one.
        searches: of AWQ.
        error: of what the layer adds to the hidden states of calibration text; None without such.
    """

    matrices: list[MatrixResult] = field(default_factory=list)
    searches: list[SearchResult] = field(default_factory=list)
    error: float | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LayerResult:
        """From what `dataclasses.asdict` gave."""
        return cls(
            [MatrixResult(**each) for each in fields["matrices"]],
            [SearchResult(**{**each, "linears": tuple(each["linears"])}) for each in fields["searches"]],
            fields["error"],
        )


class Inputs:
    """What the linear layers of a stage read on calibration text.

    Attributes:
        hessian: the mean of 2 x x^T over the inputs x: [columns, columns].
        largest: the largest magnitude.
        sample: some of them [tokens, columns].
    """

    def __init__(self, windows: Windows, layer: Layer, linear: str) -> None:
        hessian = Hessian(linear_of(layer, linear).in_features, windows.device)
        every = max(1, windows.num_tokens // _SAMPLE)
        seen, self.largest, sample = 0, 0.0, []
        for inputs in windows.inputs(layer, linear):
            hessian.add(inputs)
            self.largest = max(self.largest, float(inputs.abs().max()))
            sample.append(inputs[-seen % every :: every].clone())
            seen += len(inputs)
        self.hessian, self.sample = hessian.matrix, torch.cat(sample)[:_SAMPLE]

    def energy(self, weight: Tensor) -> Tensor:
        """The mean square, times 2, of each output of a weight [rows, columns]: [rows]."""
        return ((weight @ self.hessian) * weight).sum(1)


def matrix_error(weight: Tensor, rounded: Tensor, inputs: Inputs | None, factors: Factors) -> float:
    """The error of a rounded weight; both are scaled by the factors, and so are the inputs."""
    if inputs is None:
        return _share((rounded - weight).pow(2).sum(), weight.pow(2).sum())
    per_row = factors.rows**2
    return _share((inputs.energy(rounded - weight) * per_row).sum(), (inputs.energy(weight) * per_row).sum())


def unscaled(weight: Tensor, factors: Factors) -> Tensor:
    """A weight as it was before it was scaled."""
    return weight * factors.rows[:, None] / factors.columns


class LayerCheck:
    """Compares what a layer adds to hidden states before and after its weights change."""

    def __init__(self, layer: Layer, windows: Windows) -> None:
        self._entered = windows.some(_CHECKED)
        self._left = windows.some(_CHECKED)
        self._left.run(layer)

    def error(self, layer: Layer) -> float:
        """The error of the layer as it is now."""
        now = self._entered.some(_CHECKED)
        now.run(layer)
        whole = (self._left.states - self._entered.states).pow(2).sum()
        return _share((now.states - self._left.states).pow(2).sum(), whole)


def _share(off: Tensor, whole: Tensor) -> float:
    return float(off / whole) if float(whole) > 0 else 0.0
