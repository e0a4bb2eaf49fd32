"""8-bit floats times 8-bit floats: weights whose makers meant activations to be rounded token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from corral.quant.compact import Compact
from corral.quant.float8 import LARGEST

_CAPABILITY = (8, 9)  # the first whose tensor cores multiply 8-bit floats
_TINY = 1e-12  # the smallest scale; a token of zeros has none of its own
_ALIGNED = 16


def scales_activations(weight: Compact, x: Tensor) -> bool:
    """Whether `scaled_matmul` should multiply: the checkpoint says so, and the device is made for it.

    A scale found for all tokens together ("tensor") would make a token's result depend on its neighbours, and
    is left out; so is whatever wants a gradient.
    """
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and not (torch.is_grad_enabled() and x.requires_grad)
        and is_scaled_by_token(weight)
        and torch.cuda.get_device_capability(x.device) >= _CAPABILITY
    )


def is_scaled_by_token(weight: Compact) -> bool:
    """Whether weights are 8-bit floats with a scale to each row, or to all, for activations with one to each
    token, in sizes that `torch._scaled_mm` takes."""
    if weight.form.family != "float8" or weight.form.settings["activations"] != "token":
        return False
    rows, columns = weight.shape
    high, wide = weight.form.settings["block"]
    return (high == 1 or high >= rows) and wide >= columns and rows % _ALIGNED == 0 == columns % _ALIGNED


def scaled_matmul(weight: Compact, x: Tensor) -> Tensor:
    """x [..., columns] times the matrix: [..., rows] bfloat16, with x rounded to 8-bit floats.

    Each token's scale is its largest magnitude, up to the bound that the checkpoint sets, / 448. Products are
    summed in float32 (`torch._scaled_mm`, a scale to each row of either matrix).
    """
    rows, columns = weight.shape
    codes, scale = rounded(x.reshape(-1, columns), weight.form.settings["activation_bound"])
    product = torch._scaled_mm(
        codes,
        weight.tensors["codes"].view(torch.float8_e4m3fn).t(),
        scale_a=scale,
        scale_b=weight.tensors["scale"].float().expand(rows, 1).t().contiguous(),
        out_dtype=torch.bfloat16,
    )
    return product.view(*x.shape[:-1], rows)


def rounded(x: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """Tokens [n, columns] as float8_e4m3fn codes and float32 scales [n, 1]; larger magnitudes than `bound`
    are cut."""
    values = x.float()
    largest = values.abs().amax(1, keepdim=True)
    if bound is not None:
        largest = largest.clamp(max=bound)
    scale = (largest / LARGEST).clamp(min=_TINY)
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale
