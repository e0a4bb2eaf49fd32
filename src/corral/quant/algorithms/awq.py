"""AWQ (Lin et al., 2023, arXiv:2306.00978): weights of input channels that carry much are made larger before
they are rounded, and the inputs smaller by as much, so that what matters is rounded more finely.

Linear layers that read the same inputs share their scales. The factor goes into what makes the inputs: the
norm before them, or the rows of the layer before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corral.quant.groups import check_weight

_LEAST = 1e-4  # of a scale, before all are brought around 1
_OUTPUTS_AT_ONCE = 1 << 24  # numbers: 64 MiB


@dataclass(frozen=True)
class AwqOptions:
    """How the scales are searched; the defaults are AutoAWQ's and llm-compressor's.

    Attributes:
        steps: exponents of the inputs' sizes that are tried, from 0 up to (steps - 1) / steps.
        duo_scaling: weigh the inputs' sizes against the weights' own.
    """

    steps: int = 20
    duo_scaling: bool = True


@dataclass(frozen=True, eq=False)
class ScaleSearch:
    """What a search found.

    Attributes:
        scales: of the inputs [columns]; ones where nothing was better.
        error: of the output with them.
        plain_error: of the output without any.
    """

    scales: Tensor
    error: float
    plain_error: float


def search_scales(
    weights: Sequence[Tensor],
    group_size: int,
    input_sizes: Tensor,
    quantize: Callable[[Tensor], Tensor],
    output_error: Callable[[Sequence[Tensor]], float],
    options: AwqOptions = AwqOptions(),
) -> ScaleSearch:
    """The scales of the inputs of some layers under which rounding costs the least.

    Args:
        weights: [rows, columns] of each layer that reads the inputs.
        group_size: columns that are rounded with one scale.
        input_sizes: the mean magnitude of each input channel [columns].
        quantize: what a weight is after rounding: `quantize(weight * scales) / scales` stands for it.
        output_error: the error of the output of the block, where these weights stand for the layers'.
    """
    sizes = input_sizes.float()
    weight_sizes = _weight_sizes(weights, group_size)
    best = torch.ones_like(sizes)
    plain = least = output_error([quantize(weight) for weight in weights])
    for step in range(options.steps):
        scales = _scales(sizes, weight_sizes, step / options.steps, options.duo_scaling)
        if not bool(torch.isfinite(scales).all()):
            continue
        error = output_error([quantize(weight * scales) / scales for weight in weights])
        if error < least:
            best, least = scales, error
    return ScaleSearch(best, least, plain)


def clip_search(
    weight: Tensor, inputs: Tensor, group_size: int, quantize: Callable[[Tensor], Tensor], steps: int = 20
) -> Tensor:
    """A weight [rows, columns] whose groups are cut off where their part of the output is nearest then.

    For each group the largest magnitude that is kept goes from all of it down to half.

    Args:
        weight: of the layer.
        inputs: some of the layer's [tokens, columns].
        group_size: columns that are rounded with one scale.
        quantize: what a weight is after rounding, each row for itself.
        steps: from all of the magnitude to nothing; half of them are tried.

    Raises:
        ValueError: the weight holds what is not finite, or `group_size` does not divide its columns.
    """
    _, columns = check_weight(weight, group_size)
    groups = columns // group_size
    x = inputs.to(weight.dtype).view(-1, groups, group_size).transpose(0, 1)  # [groups, tokens, group_size]
    some = max(1, _OUTPUTS_AT_ONCE // (len(inputs) * groups))
    parts = torch.split(weight, some)
    return torch.cat([_clipped(part, x, quantize, steps) for part in parts])


def _clipped(weight: Tensor, x: Tensor, quantize: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    rows, groups = len(weight), len(x)
    parts = weight.view(rows, groups, -1)
    whole = parts.abs().amax(2, keepdim=True)
    best, least = whole.clone(), torch.full_like(whole[..., 0], torch.inf)
    for step in range(steps // 2):
        bound = whole * (1 - step / steps)
        change = quantize(parts.clamp(-bound, bound).view(rows, -1)).view_as(parts) - parts
        outputs = torch.bmm(x, change.permute(1, 2, 0))  # [groups, tokens, rows]
        error = outputs.pow_(2).mean(1).t()
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better[..., None], bound, best)
    return parts.clamp(-best, best).reshape(rows, -1)


def input_sizes(inputs: Tensor) -> Tensor:
    """The mean magnitude of each channel of inputs [tokens, columns]: [columns]."""
    return inputs.float().abs().mean(0)


def _weight_sizes(weights: Sequence[Tensor], group_size: int) -> Tensor:
    """The mean over the rows of all layers of each column's share of the largest magnitude in its group."""
    rows = torch.cat([weight.float().abs() for weight in weights])
    groups = rows.view(len(rows), -1, group_size)
    shares = groups / groups.amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return shares.view_as(rows).mean(0)


def _scales(sizes: Tensor, weight_sizes: Tensor, exponent: float, duo: bool) -> Tensor:
    scales = sizes.pow(exponent)
    if duo:
        scales = scales / (weight_sizes.pow(1 - exponent) + _LEAST)
    scales = scales.clamp_min(_LEAST)
    return scales / (scales.max() * scales.min()).sqrt()
