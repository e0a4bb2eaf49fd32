"""Linear layers over quantized weights, in memory as small as the weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from corral.quant import Weight
from corral.quant.compact import Compact, Family, Form
from corral.quant.scaled import scaled_matmul, scales_activations

_FORM = "form"
_PARTS = ("codes", "scale", "zero", "offset", "order", "levels")


class QuantizedLinear(nn.Module):
    """y = x W^T + b with a quantized W. A gradient goes through to x; the weights have none.

    The tensors of W are buffers: `codes` uint8 [rows, bytes of a row], as `corral.quant.compact` packs them,
    `scale`, and where the family has them `zero`, `offset`, `order` and `levels`. One more, `form`, tells
    what they mean, so that a state dict holds all of W, and nothing but tensors. `load_state_dict` takes
    weights of the same form; `take_quantized` makes layers of the form that a state dict has.

    The layer computes in the type of its input. `.to(dtype)`, `.half()` and the like change the bias alone:
    a rounded scale would be another weight.

    Args:
        weight: W [out_features, in_features], a family's or packed already; its tensors are not copied, but
            for small codes, which are packed.
        bias: [out_features], or None.

    Attributes:
        exact: False lets 8-bit floats that are made for it meet activations of 8 bits where the device can
            multiply both; see `corral.quant.scaled`. Not for training: no gradient is asked for then.
    """

    def __init__(self, weight: Family | Compact, bias: Tensor | None = None) -> None:
        super().__init__()
        compact = weight if isinstance(weight, Compact) else Compact.of(weight)
        self._form = compact.form
        self.out_features, self.in_features = compact.shape
        self.exact = True
        for name in _PARTS:
            if name in compact.tensors:
                self.register_buffer(name, compact.tensors[name])
        self.register_buffer(_FORM, compact.form.to_tensor())
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)
        self.bias: nn.Parameter | None

    @property
    def compact(self) -> Compact:
        """The weights as they lie in memory; no copy."""
        buffers = {name: self._buffers[name] for name in _PARTS if name in self._buffers}
        return Compact(self._form, {name: t for name, t in buffers.items() if t is not None})

    @property
    def weight(self) -> Family:
        """The weights as one of the families; small codes are unpacked to a byte each."""
        return self.compact.unpack()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features], in the type of x."""
        compact = self.compact
        if not self.exact and scales_activations(compact, x):
            output = scaled_matmul(compact, x)
        else:
            output = compact.matmul(x)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Shape and form, for people."""
        settings = {name: value for name, value in self._form.settings.items() if value is not None}
        words = {"in_features": self.in_features, "out_features": self.out_features, **settings}
        return ", ".join([self._form.family, *(f"{name}={value}" for name, value in words.items())])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Moves the weights with the module, and keeps what changes floating-point types away from them."""
        buffers = {name: self._buffers.pop(name) for name in (*_PARTS, _FORM) if name in self._buffers}
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._buffers.update(buffers)
        moved = {name: _moved(tensor, fn) for name, tensor in buffers.items() if tensor is not None}
        self._buffers.update(moved)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        problem = self._mismatch(state_dict, prefix)
        if problem is not None:
            error_msgs.append(f"{prefix.removesuffix('.') or 'the layer'}: {problem}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _mismatch(self, state: Mapping[str, Any], prefix: str) -> str | None:
        """Why a state dict's tensors are not for this layer: copied, they would be cast to its types."""
        if f"{prefix}{_FORM}" in state:
            try:
                form = Form.from_tensor(state[f"{prefix}{_FORM}"])
            except ValueError as error:
                return str(error)
            if form != self._form:
                return f"the weights are {form}, but the layer's are {self._form}; take_quantized replaces it"
        for name, own in self.compact.tensors.items():
            tensor = state.get(f"{prefix}{name}")
            if isinstance(tensor, Tensor) and tensor.dtype != own.dtype:
                return f"{name} is {tensor.dtype}, but the layer's is {own.dtype}; take_quantized replaces it"
        return None


def take_quantized(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Makes the linear layers of a model quantized for which a state dict holds quantized weights.

    Their codes and scales are the state dict's own tensors, no copies; `load_state_dict` takes the rest. The
    model may be on the meta device: `model.load_state_dict(state, assign=True)` then.

    Raises:
        ValueError: tensors are missing, do not fit together, or are for a layer that the model does not have;
            the message names the layer.
    """
    for key in [key for key in state if key.endswith(f".{_FORM}")]:
        name = key.removesuffix(f".{_FORM}")
        tensors = {part: state[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in state}
        try:
            compact = Compact(Form.from_tensor(state[key]), tensors)
            compact.check()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        replace_linear(model, name, compact)


def replace_linear(model: nn.Module, name: str, weight: Family | Compact) -> QuantizedLinear:
    """Puts a quantized layer in the place of the linear layer `name`, whose bias it keeps.

    Raises:
        ValueError: there is no such layer, or it has another shape.
    """
    parent, _, leaf = name.rpartition(".")
    try:
        old = model.get_submodule(name)
    except AttributeError:
        old = None
    if not isinstance(old, nn.Linear | QuantizedLinear):
        raise ValueError(f"{name} is no linear layer of this model")
    shape = (old.out_features, old.in_features)
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name} has shape {list(weight.shape)}, but the model's layer has {list(shape)}")
    new = QuantizedLinear(weight, old.bias)
    setattr(model.get_submodule(parent), leaf, new.train(old.training))
    return new


def named_weights(model: nn.Module) -> Iterator[tuple[str, Weight]]:
    """The weights of a model by their names in its state dict, those of quantized layers as families."""
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        if isinstance(module, QuantizedLinear):
            yield f"{prefix}weight", module.weight
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}{name}", parameter.detach()


def _moved(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor changed in all but its type: as integers, which no change of floats touches."""
    integers = {2: torch.int16, 4: torch.int32}
    plain = tensor.view(integers[tensor.itemsize]) if tensor.is_floating_point() else tensor
    moved = change(plain)
    if moved.dtype != plain.dtype:
        raise TypeError(f"quantized weights cannot be made {moved.dtype}; dequantize them instead")
    return moved.view(tensor.dtype)
