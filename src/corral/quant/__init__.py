"""Quantized weights: one object for inference, training and files.

`Affine` holds integers with a scale (and a zero point or an offset) to each group of columns, `Codebook`
indices into sixteen levels. Neither knows how a file or a kernel lays its bits out.
"""

from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.codebook import NF4, Codebook

Weight = Tensor | Affine | Codebook
"""A matrix [rows, columns] in whichever form it is kept."""

__all__ = ["NF4", "Affine", "Codebook", "Weight"]
