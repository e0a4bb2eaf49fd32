"""Weights that are quantized while a checkpoint is read: each matrix to the nearest numbers, at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.codebook import Codebook
from corral.quant.float8 import Float8

_KEPT = ("embed_tokens.weight", "lm_head.weight")  # who packs them decides


def _group(weight: Tensor, most: int) -> int:
    """The largest power of two up to `most` that divides the columns."""
    columns = weight.shape[1]
    return min(most, columns & -columns)


SCHEMES: dict[str, Callable[[Tensor], Affine | Codebook | Float8]] = {
    "int8": lambda weight: Affine.quantize(weight, bits=8, group_size=_group(weight, 32)),
    "int4": lambda weight: Affine.quantize(weight, bits=4, group_size=_group(weight, 32), symmetric=False),
    "nf4": lambda weight: Codebook.quantize(weight, group_size=_group(weight, 64)),
    "fp8": lambda weight: Float8.quantize(weight, (1, weight.shape[1])),
}
"""int8 and int4 (which has offsets too) have a scale to each 32 columns, nf4 to each 64, fp8 to each row."""


def quantized(name: str, weight: Tensor, scheme: str) -> Tensor | Affine | Codebook | Float8:
    """A named weight in one of `SCHEMES`; vectors, the embedding and the head stay as they are.

    Raises:
        ValueError: the weight holds what is not finite.
    """
    if weight.dim() != 2 or name.endswith(_KEPT):
        return weight
    return SCHEMES[scheme](weight)
