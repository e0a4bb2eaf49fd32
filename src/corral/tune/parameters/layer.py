"""What is trained beside one linear layer: a low-rank pair, DoRA's magnitudes, a bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corral.checkpoints.adapter_reader import LowRank
from corral.quant.linear import QuantizedLinear
from corral.tune.parameters.product import adapted, bare, low_rank, row_norms, scaled
from corral.tune.parameters.targets import LinearLayer


class LayerAdapter(nn.Module):
    """The trained parameters beside one linear layer, which stays as it is.

    Letters in shapes: T rows, I in_features, O out_features, R rank.

    Attributes:
        lora_A, lora_B: [R, I] and [O, R], or both None.
        lora_magnitude_vector: float32 [O], the lengths of the rows of the adapted weight (DoRA; Liu et al.,
            2024, arXiv:2402.09353), or None.
        bias: [O], in place of the layer's, or None.
    """

    def __init__(self, added: LowRank | None, bias: Tensor | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = 0.0 if added is None else added.scale
        self.dropout = dropout
        a, b, magnitude = (None,) * 3 if added is None else (added.a, added.b, added.magnitude)
        self.lora_A = _parameter(a)
        self.lora_B = _parameter(b)
        self.lora_magnitude_vector = _parameter(magnitude)
        self.bias = _parameter(bias)

    @property
    def added(self) -> LowRank | None:
        """The pair as it is, no copies."""
        if self.lora_A is None or self.lora_B is None:
            return None
        return LowRank(self.lora_A, self.lora_B, self.scale, self.lora_magnitude_vector)

    def forward(self, linear: LinearLayer, x: Tensor) -> Tensor:
        """x [T, I] to [T, O], in the type of x."""
        output = self._product(linear, x)
        if self.bias is None or linear.bias is None:
            return output
        return output + (self.bias - linear.bias).to(output.dtype)

    def extra_repr(self) -> str:
        """For people."""
        return f"scale={self.scale:g}, dropout={self.dropout:g}"

    def _product(self, linear: LinearLayer, x: Tensor) -> Tensor:
        a, b = self.lora_A, self.lora_B
        if a is None or b is None:
            output: Tensor = linear(x)
            return output
        dropout = self.dropout if self.training else 0.0
        if self.lora_magnitude_vector is None:
            return adapted(linear, x, a, b, self.scale, dropout)
        norms = row_norms(dense_weight(linear, x.dtype), a, b, self.scale)
        factors = self.lora_magnitude_vector / norms
        if dropout == 0:
            output = scaled(adapted(linear, x, a, b, self.scale, biased=False), factors)
            return output if linear.bias is None else output + linear.bias.to(output.dtype)
        # As PEFT: what the layer itself makes of x is not dropped, the change of it is.
        whole: Tensor = linear(x)
        x = F.dropout(x, dropout)
        return whole + scaled(bare(linear, x), factors - 1) + scaled(low_rank(x, a, b, self.scale), factors)


def new_pair(
    linear: LinearLayer,
    rank: int,
    scale: float,
    generator: torch.Generator,
    dtype: torch.dtype,
    dora_in: torch.dtype | None,
) -> LowRank:
    """A pair that changes nothing yet: A uniform as PEFT draws it, and B zeros.

    `generator` is of the CPU, so that a seed gives the same on every device. `dora_in` is the type in which
    the layer will multiply, where there are to be magnitudes: the lengths that the rows have then.
    """
    device = device_of(linear)
    a = torch.empty(rank, linear.in_features)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    a, b = a.to(device, dtype), torch.zeros(linear.out_features, rank, dtype=dtype, device=device)
    magnitude = None if dora_in is None else row_norms(dense_weight(linear, dora_in), a, b, scale)
    return LowRank(a, b, scale, magnitude)


def dense_weight(linear: LinearLayer, dtype: torch.dtype) -> Tensor:
    """The weight [O, I] of a layer as it multiplies in a type; a quantized one is dequantized."""
    return linear.compact.dequantize(dtype) if isinstance(linear, QuantizedLinear) else linear.weight


def device_of(linear: LinearLayer) -> torch.device:
    """Where a layer's weight is."""
    weight = linear.compact.tensors["codes"] if isinstance(linear, QuantizedLinear) else linear.weight
    return weight.device


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor)
