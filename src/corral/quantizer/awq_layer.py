"""AWQ over a layer: which linear layers share scales, and where the scales go.

Scales multiply the columns of the linear layers that read some inputs; what makes these inputs is divided by
them: a norm, or the rows of a linear layer. With grouped-query attention v_proj makes fewer values than
o_proj reads, each for several heads, and the two are left as they are. (AutoAWQ: awq/models/llama.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from corral.model.llama import MLP, Attention, Layer, Linear, RMSNorm
from corral.model.project import plain
from corral.quant.algorithms.awq import input_sizes, search_scales
from corral.quantizer.layers import STAGES, Windows, linear_of

_WINDOWS = 8
_TOKENS = 4096  # of the windows on which scales are searched: each candidate runs them all

Nearest = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factors:
    """By how much scaling has changed a weight: it is W / rows * columns, with W the weight before.

    Attributes:
        rows: [rows].
        columns: [columns].
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def none(cls, weight: Tensor) -> Factors:
        """Those of a weight that has not been changed."""
        return cls(weight.new_ones(weight.shape[0]), weight.new_ones(weight.shape[1]))


@dataclass(frozen=True)
class SearchResult:
    """What scaling has won for some linear layers.

    Attributes:
        linears: their names within the layer.
        output_of: the module whose output was compared.
        error: the mean square of what the output is off by after rounding, over that of the output.
        rtn_error: the same without scaling.
    """

    linears: tuple[str, ...]
    output_of: str
    error: float
    rtn_error: float


@dataclass(frozen=True)
class _Group:
    before: str
    linears: tuple[str, ...]
    output_of: str


def scale_layer(
    layer: Layer,
    windows: Windows,
    taken: Sequence[str],
    group_size: int | None,
    nearest: Nearest,
    dtype: torch.dtype,
) -> tuple[dict[str, Factors], list[SearchResult]]:
    """Scales a layer, which computes the same afterwards; gives the factors of its linear layers by name.

    Args:
        layer: is changed.
        windows: what enters it.
        taken: the linear layers that will be rounded.
        group_size: columns that are rounded with one scale; None for all of a row.
        nearest: what a weight is after rounding.
        dtype: that norms are stored in; it holds what a norm divided by its scales is.
    """
    factors = {name: Factors.none(linear_of(layer, name).weight) for stage in STAGES for name in stage}
    some = windows.some(min(_WINDOWS, max(1, _TOKENS // windows.states.shape[1])))
    results = []
    for group in _groups(layer):
        rounded = [name for name in group.linears if name in taken]
        if not rounded:
            continue
        inputs = torch.cat(list(some.inputs(layer, group.linears[0])))
        weights = [linear_of(layer, name).weight for name in rounded]
        outputs = _outputs(layer, group.output_of, inputs, some)
        target = outputs()
        found = search_scales(
            weights,
            group_size or weights[0].shape[1],
            input_sizes(inputs),
            nearest,
            partial(_error, weights, outputs, target),
        )
        _apply(layer, group, found.scales, factors, dtype)
        results.append(SearchResult(tuple(rounded), group.output_of, found.error, found.plain_error))
    return factors, results


def _groups(layer: Layer) -> Iterator[_Group]:
    qkv, out, gate_up, down = STAGES
    yield _Group("input_layernorm", qkv, "self_attn")
    if layer.self_attn.v_proj.out_features == layer.self_attn.o_proj.in_features:
        yield _Group("self_attn.v_proj", out, out[0])
    yield _Group("post_attention_layernorm", gate_up, "mlp")
    yield _Group("mlp.up_proj", down, down[0])


def _outputs(layer: Layer, name: str, inputs: Tensor, windows: Windows) -> Callable[[], Tensor]:
    """The outputs of a module of the layer, with whatever weights it has when they are asked for."""
    module = layer.get_submodule(name)
    if isinstance(module, Attention):
        cos, sin, attend = windows.attend(slice(None))
        return lambda: module(inputs, cos, sin, attend, plain)
    if isinstance(module, MLP):
        return lambda: module(inputs, plain)
    return lambda: module(inputs)


def _error(
    weights: Sequence[Tensor], outputs: Callable[[], Tensor], target: Tensor, tried: Sequence[Tensor]
) -> float:
    """How far outputs are from their target while other weights stand for those of the layer."""
    kept = [weight.data for weight in weights]
    for weight, other in zip(weights, tried, strict=True):
        weight.data = other
    try:
        change = outputs().sub_(target)
        return float(change.pow_(2).mean() / target.pow(2).mean())
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data


def _apply(
    layer: Layer, group: _Group, scales: Tensor, factors: dict[str, Factors], dtype: torch.dtype
) -> None:
    before = layer.get_submodule(group.before)
    if isinstance(before, RMSNorm):
        divided = (before.weight / scales).to(dtype).float()
        usable = torch.isfinite(divided) & (divided != 0)
        divided = torch.where(usable, divided, before.weight)
        scales = torch.where(usable, before.weight / divided, 1.0)
        before.weight.data = divided
    else:
        assert isinstance(before, Linear)
        before.weight.data /= scales[:, None]
        if before.bias is not None:
            before.bias.data /= scales
        old = factors[group.before]
        factors[group.before] = Factors(old.rows * scales, old.columns)
    for name in group.linears:
        linear_of(layer, name).weight.data *= scales
        factors[name] = Factors(factors[name].rows, factors[name].columns * scales)
