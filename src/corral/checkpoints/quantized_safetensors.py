"""The weights of a quantized Hugging Face folder, module by module, as weight families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from corral.checkpoints.checkpoint import read_json
from corral.checkpoints.tensor_files import TensorFiles
from corral.errors import CheckpointError, ConfigError
from corral.model.config import LlamaConfig
from corral.quant import Weight
from corral.quant.encodings.config import OLD_FILES, Quantization, read_quantization
from corral.quant.encodings.named import FLOATS, EncodingError


def quantization_of(folder: Path, fields: Mapping[str, Any]) -> tuple[Quantization | None, tuple[Path, ...]]:
    """What a folder, whose config.json is given, says of its quantized weights, and which older files say it.

    Raises:
        ConfigError: a method or a setting that Corral does not read.
    """
    old: dict[str, Mapping[str, Any]] = {}
    if not fields.get("quantization_config"):
        old = {name: read_json(folder / name) for name in OLD_FILES if (folder / name).is_file()}
    try:
        return read_quantization(fields, old), tuple(folder / name for name in old)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def quantized_weights(
    files: TensorFiles, quantization: Quantization, config: LlamaConfig, prefix: str = ""
) -> Iterator[tuple[str, Weight]]:
    """The weights whose Hugging Face names begin with `prefix`, one at a time; those that are not quantized
    as they are.

    Each module is decoded when it is asked for, wherever its tensors lie. Scales of KV caches are left out,
    and biases of zeros that a format adds to a model which has none.

    Raises:
        CheckpointError: a tensor is missing or not as its format says; the message names it and its file.
    """
    modules = _modules(files, quantization)
    unused = tuple(f".{part}" for part in quantization.unused)
    with files.opened() as get:
        for name in files.where:
            if name.endswith(unused) or not name.startswith(prefix):
                continue
            module, part = _split(name, quantization.parts)
            names = modules.get(module, {})
            if part is None:
                tensor = get(name)
                if not (_is_added_bias(name, modules, config) and not tensor.any()):
                    yield name, tensor
            elif name == next(iter(names.values())):  # the first tensor of its module stands for all
                tensors = {part: get(full) for part, full in names.items()}
                if set(tensors) == {"weight"} and tensors["weight"].dtype in FLOATS:
                    yield name, tensors["weight"]
                else:
                    yield f"{module}.weight", _decode(files, quantization, module, tensors)


def _modules(files: TensorFiles, quantization: Quantization) -> dict[str, dict[str, str]]:
    """The tensors of each module, part by part."""
    modules: dict[str, dict[str, str]] = {}
    for name in files.where:
        module, part = _split(name, quantization.parts)
        if part is not None:
            modules.setdefault(module, {})[part] = name
    return modules


def _split(name: str, parts: tuple[str, ...]) -> tuple[str, str | None]:
    """The module of a tensor and its part there; None for what is no part of a weight."""
    for part in sorted(parts, key=len, reverse=True):  # "weight.absmax" before "absmax"
        if name.endswith(f".{part}"):
            return name[: -len(part) - 1], part
    return name.rpartition(".")[0], None


def _decode(
    files: TensorFiles, quantization: Quantization, module: str, tensors: Mapping[str, Tensor]
) -> Weight:
    try:
        return quantization.decode(module, tensors)
    except EncodingError as error:
        name, problem = f"{module}.{error.tensor}", error.problem
    except ValueError as error:
        name, problem = f"{module}.weight", f"cannot be read: {error}"
    file = files.where.get(name) or files.where[f"{module}.{next(iter(tensors))}"]
    raise CheckpointError(f"{file}: {name} {problem}")


def _is_added_bias(name: str, modules: Mapping[str, Mapping[str, str]], config: LlamaConfig) -> bool:
    """Whether this is the bias of a quantized module in a model without biases: AutoGPTQ writes zeros."""
    module, _, leaf = name.rpartition(".")
    has_bias = config.mlp_bias if ".mlp." in name else config.attention_bias
    return leaf == "bias" and not has_bias and set(modules.get(module, ())) not in (set(), {"weight"})
