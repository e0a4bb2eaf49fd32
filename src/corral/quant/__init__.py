"""Quantized weights: one object for inference, training and files.

`Affine` holds integers with a scale (and a zero point or an offset) to each group of columns, `Codebook`
indices into sixteen levels, `Float8` 8-bit floats with a scale to each block. Each multiplies, and passes a
gradient on to what it is multiplied with; `corral.quant.linear.QuantizedLinear` is a module of one. None
knows how a file or a kernel lays its bits out: files are the matter of `corral.quant.encodings`.
"""

from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.codebook import FP4, NF4, Codebook
from corral.quant.float8 import Float8

Weight = Tensor | Affine | Codebook | Float8
"""A matrix [rows, columns] in whichever form it is kept."""

__all__ = ["FP4", "NF4", "Affine", "Codebook", "Float8", "Weight"]
