"""What several formats ask of the weights that are written in them."""

from __future__ import annotations

import torch
from torch import Tensor

from corral.quant.affine import Affine


def half_scales(scale: Tensor) -> Tensor:
    """Scales as float16, which holds them exactly.

    Raises:
        ValueError: it does not.
    """
    half = scale.to(torch.float16)
    if not torch.equal(half.float(), scale.float()):
        raise ValueError("this format keeps scales in float16, which does not hold those of the weight")
    return half


def is_symmetric(weight: Affine) -> bool:
    """Whether the zero point of all groups is the middle of the codes."""
    middle = 1 << (weight.bits - 1)
    return bool((weight.zero == middle).all()) if isinstance(weight.zero, Tensor) else weight.zero == middle
