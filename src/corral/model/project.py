"""How a linear layer is applied: the other part of the network that its caller chooses."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Project(Protocol):
    """Applies one linear layer of the network, and whatever is added to it from outside, to its input.

    Takes the layer, which is known by its identity, and x [rows, in_features]; gives [rows, out_features].
    """

    def __call__(self, linear: nn.Module, x: Tensor) -> Tensor: ...


def plain(linear: nn.Module, x: Tensor) -> Tensor:
    """The linear layer alone."""
    output: Tensor = linear(x)
    return output
