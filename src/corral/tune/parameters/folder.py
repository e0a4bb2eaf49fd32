"""Trained adapters to PEFT folders, and back to train on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from corral.checkpoints.adapter_config import AdapterConfig
from corral.checkpoints.adapter_reader import AdapterWeights, read_adapter_weights
from corral.checkpoints.adapter_writer import FULL, STORED, write_adapter
from corral.checkpoints.checkpoint import Checkpoint
from corral.model.llama import Llama
from corral.tune.config import ParametersConfig
from corral.tune.errors import TuneError
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.targets import chosen, linear_layers

_FLOATS = ("f64", "f32", "f16", "bf16", "float64", "float32", "float16", "bfloat16")  # as readers name them


def adapters_for(
    model: Llama,
    config: ParametersConfig,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Adapters:
    """The adapters that a run trains: those of `config.adapter`, or new ones.

    These are drawn from a generator of the CPU, so that a seed gives the same on every rank and device.

    Raises:
        TuneError: the configuration does not fit the model or the adapter that training starts from.
        CheckpointError: that adapter cannot be read, or is for another model.
    """
    assert config.method != "full", "a whole model has no adapters"
    if config.adapter is None:
        return Adapters.new(model, config, generator, dtype)
    return load_adapters(Path(config.adapter), model, config, dtype)


def load_adapters(
    folder: Path,
    model: Llama,
    config: ParametersConfig | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> Adapters:
    """The adapters of a PEFT folder, to train on.

    What the folder says counts; of `config` the dropout does, where it gives one.

    Raises:
        TuneError: `config` says something else than the folder.
        CheckpointError: the folder cannot be read, or is for another model.
    """
    weights = read_adapter_weights(folder, model)
    if config is not None:
        _require_agreement(folder, weights, config, tuple(linear_layers(model)))
        if config.dropout:
            weights = replace(weights, config=replace(weights.config, dropout=config.dropout))
    return Adapters(model, weights, dtype)


def save_adapter(
    folder: Path, adapters: Adapters, base_model: str | None = None, base_weights: str = FULL
) -> None:
    """Writes adapters as a PEFT folder, which appears whole or not at all.

    Args:
        folder: must not exist yet, or be empty.
        base_model: the name of the model, for those who load the adapter.
        base_weights: what was trained over, as `base_weights_of` tells, for `corral merge`.

    Raises:
        CheckpointError: `folder` exists and is not empty, or the disk is full.
    """
    write_adapter(folder, adapters.weights(), adapters.linears, base_model, base_weights)


def base_weights_of(config: ParametersConfig, checkpoint: Checkpoint) -> str:
    """What lies under the adapters of a run: a scheme of quantization, `STORED`, or `FULL`."""
    if config.base is not None:
        return config.base
    return STORED if is_quantized(checkpoint) else FULL


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether some of a checkpoint's weights are quantized on disk."""
    return any(kind.lower() not in _FLOATS for kind in checkpoint.storage)


def _require_agreement(
    folder: Path, weights: AdapterWeights, config: ParametersConfig, linears: Collection[str]
) -> None:
    default, found = ParametersConfig(), _as_parameters(weights.config)
    for name, value in found.items():
        given = getattr(config, name)
        if given not in (value, getattr(default, name)):
            raise TuneError(
                f"parameters.{name} is {given!r}, but the adapter in {folder} has {value!r}; leave it out"
            )
    if config.targets != default.targets and chosen(config.targets, list(linears)) != [
        name for name in linears if name in weights.layers
    ]:
        raise TuneError(
            f"parameters.targets is {config.targets!r}, but the adapter in {folder} is of other layers; "
            "leave it out"
        )


def _as_parameters(settings: AdapterConfig) -> dict[str, Any]:
    return {
        "method": "dora" if settings.use_dora else "lora",
        "rank": settings.rank,
        "alpha": settings.alpha,
        "rslora": settings.use_rslora,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "bias": settings.bias,
    }
