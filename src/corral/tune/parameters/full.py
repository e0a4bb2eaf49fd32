"""Training the whole model."""

from __future__ import annotations

from torch import nn

from corral.quant.linear import QuantizedLinear
from corral.tune.errors import TuneError


def full(model: nn.Module) -> dict[str, nn.Parameter]:
    """Makes all of a model require gradients, and gives its parameters by name, a tied embedding once.

    Raises:
        TuneError: some of its layers are quantized, which cannot be trained.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            raise TuneError(
                f"parameters.method is 'full', but {name} is quantized, which only goes under an adapter; "
                "take method 'lora' or 'dora', or the model in full precision"
            )
    model.requires_grad_(True)
    return dict(model.named_parameters())
