"""Which linear layers are adapted: names, ends of names, or regular expressions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn

from corral.checkpoints.adapter_config import pattern
from corral.quant.linear import QuantizedLinear
from corral.tune.config import ALL_LINEAR
from corral.tune.errors import TuneError

HEAD = "lm_head"

LinearLayer = nn.Linear | QuantizedLinear


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """The linear layers of a model by name, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LinearLayer)}


def chosen(targets: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the names of linear layers that the targets mean, in their order.

    A target is a name, the end of one after a dot, or a regular expression of whole names; "all-linear" is
    all but the head.

    Raises:
        TuneError: a target means none of them.
    """
    wanted: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        meant = [name for name in names if _means(target, name)]
        if not meant:
            raise _no_layer("targets", target, names)
        wanted.update(meant)
    if not wanted:
        raise TuneError(f"parameters.targets is empty; name linear layers, or give {ALL_LINEAR!r}")
    return [name for name in names if name in wanted]


def check_patterns(field: str, keys: Iterable[str], adapted: Sequence[str]) -> None:
    """Refuses a key of `rank_pattern` or `alpha_pattern` that is for none of the adapted layers.

    Raises:
        TuneError: there is one; the message names it.
    """
    for key in keys:
        try:
            compiled = pattern(key)
        except (re.error, RecursionError, OverflowError) as error:
            raise _no_expression(field, key, error) from None
        if not any(compiled.match(name) for name in adapted):
            raise _no_layer(field, key, adapted)


def _means(target: str, name: str) -> bool:
    if target == ALL_LINEAR:
        return name != HEAD
    if name == target or name.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise _no_expression("targets", target, error) from None


def _no_expression(field: str, text: str, error: Exception) -> TuneError:
    return TuneError(f"parameters.{field} has {text!r}, which is no regular expression: {error}")


def _no_layer(field: str, text: str, names: Sequence[str]) -> TuneError:
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    near = difflib.get_close_matches(text.rpartition(".")[2], ends, n=3, cutoff=0.5)
    if "." in text:
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.7) + near
    which = f"; near it are {', '.join(near)}" if near else f"; there are {', '.join(ends)}"
    kind = "adapted layer" if field != "targets" else "linear layer of this model"
    return TuneError(f"parameters.{field} has {text!r}, which is no {kind}{which}")
