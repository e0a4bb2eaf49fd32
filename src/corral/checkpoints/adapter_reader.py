"""Reads the adapters that PEFT writes: adapter_config.json and adapter_model.safetensors (or .bin).

The format is that of PEFT's guide to its checkpoints: `base_model.model.` and the module's name, then
`.lora_A.weight` [r, in_features] or `.lora_B.weight` [out_features, r]; for DoRA `.lora_magnitude_vector`
[out_features]; and, where biases of the model are trained, `.bias` or (of adapted layers) `.base_layer.bias`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from corral.checkpoints.adapter_config import ADAPTER_CONFIG, MERGE_BY_PEFT, AdapterConfig
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.quant.linear import QuantizedLinear

SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."

_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_BIAS = re.compile(r"(?P<module>.+?)(\.base_layer)?\.bias")
# PEFT saves these along, unchanged, when the head is adapted.
_SAVED_ALONG = re.compile(r"(model\.embed_tokens|lm_head)(\.base_layer)?\.weight")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Linear = nn.Linear | QuantizedLinear


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a linear layer of x: scale * (x @ a.T @ b.T); a [r, in], b [out, r].

    With a `magnitude` [out], DoRA's, each row of the layer's W + scale * b @ a is brought to that length.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class AdapterWeights:
    """All that is in an adapter's folder, by the names of the model's linear layers.

    `biases` [out] take the place of those of the model.
    """

    config: AdapterConfig
    layers: dict[str, LowRank]
    biases: dict[str, Tensor]


def read_adapter(
    folder: Path, model: nn.Module, parameter: Callable[[str], Tensor] | None = None
) -> dict[str, LowRank]:
    """What the plain LoRA adapter in a folder adds, by the names of the model's linear layers.

    The weights in the file decide which layers are adapted. The tensors may be views of the mapped file.
    `parameter` gives the model's own weights by name, where they are not those of `model`.

    Raises:
        CheckpointError: a file is missing or damaged, the adapter is not plain LoRA, or it is for another
            model; the message names the file and the field or module.
    """
    config = AdapterConfig.read(folder / ADAPTER_CONFIG)
    return _read(folder, config, model, parameter).layers


def read_adapter_weights(
    folder: Path, model: nn.Module, parameter: Callable[[str], Tensor] | None = None
) -> AdapterWeights:
    """As `read_adapter`, for what trains or merges adapters: DoRA and biases, too.

    Raises:
        CheckpointError: as there.
    """
    config = AdapterConfig.read(folder / ADAPTER_CONFIG, plain=False)
    return _read(folder, config, model, parameter)


def check_adapter(folder: Path, config: LlamaConfig) -> None:
    """Raises CheckpointError where `read_adapter` would for a model of this shape, which need not be loaded.

    Only whether a copy of the embedding is that of the model remains open.
    """
    read_adapter(folder, Llama.on_meta(config))


def _read(
    folder: Path, config: AdapterConfig, model: nn.Module, parameter: Callable[[str], Tensor] | None
) -> AdapterWeights:
    file, tensors = _read_tensors(folder)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    parts: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        part = _part(name, config)
        if part is not None:
            module, kind = part
            if kind in parts.setdefault(module, {}):
                raise CheckpointError(f"{file} holds {kind} of {module} twice")
            parts[module][kind] = tensor
        elif config.bias != "none" and (bias := _BIAS.fullmatch(name)):
            biases[bias["module"]] = _checked_bias(file, bias["module"], linears, tensor)
        else:
            _check_saved_along(file, name, tensor, parameter or model.get_parameter)
    if not parts:
        raise CheckpointError(f"{file} holds no LoRA weights; save the adapter again")
    layers = {
        module: _low_rank(file, config, module, linears.get(module), of_module)
        for module, of_module in parts.items()
    }
    return AdapterWeights(config, layers, biases)


def _part(name: str, config: AdapterConfig) -> tuple[str, str] | None:
    """The module and the part of its adapter that a tensor is."""
    half = _HALF.fullmatch(name)
    if half is not None:
        return half["module"], f"lora_{half['half']}"
    magnitude = _MAGNITUDE.fullmatch(name) if config.use_dora else None
    return None if magnitude is None else (magnitude["module"], "lora_magnitude_vector")


def _low_rank(
    file: Path, config: AdapterConfig, module: str, linear: Linear | None, parts: Mapping[str, Tensor]
) -> LowRank:
    if linear is None:
        raise CheckpointError(
            f"{file} has weights for {module}, which is no linear layer of this model; "
            "the adapter was made for another model"
        )
    for part in ("lora_A", "lora_B", "lora_magnitude_vector")[: 3 if config.use_dora else 2]:
        if part not in parts:
            raise CheckpointError(f"{file} lacks {part} of {module}; save or download the adapter again")
    a, b, magnitude = parts["lora_A"], parts["lora_B"], parts.get("lora_magnitude_vector")
    _check_shapes(file, module, linear, a, b)
    rank = config.rank_of(module)
    if a.shape[0] != rank:
        raise CheckpointError(
            f"{file}: {module} has rank {a.shape[0]}, but r and rank_pattern in {ADAPTER_CONFIG} say {rank}; "
            "the two files do not belong together"
        )
    for part, tensor in parts.items():
        _check_numbers(file, f"{part} of {module}", tensor)
    if magnitude is not None:
        _check_vector(file, f"lora_magnitude_vector of {module}", linear, magnitude)
    return LowRank(a, b, config.scale_of(module), magnitude)


def _checked_bias(file: Path, module: str, linears: Mapping[str, Linear], bias: Tensor) -> Tensor:
    linear = linears.get(module)
    if linear is None or linear.bias is None:
        raise CheckpointError(
            f"{file} has a bias of {module}, which is no linear layer with a bias in this model; "
            "the adapter was made for another model"
        )
    _check_vector(file, f"the bias of {module}", linear, bias)
    _check_numbers(file, f"the bias of {module}", bias)
    return bias


def _check_vector(file: Path, name: str, linear: Linear, vector: Tensor) -> None:
    if tuple(vector.shape) != (linear.out_features,):
        raise CheckpointError(
            f"{file}: {name} has shape {list(vector.shape)}; this model's layer needs "
            f"[{linear.out_features}]: the adapter was made for another model"
        )


def _check_numbers(file: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{file}: {name} is of type {str(tensor.dtype).removeprefix('torch.')}; "
            "Corral reads float32, bfloat16 and float16"
        )
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{file}: {name} holds numbers that are not finite")


def _check_shapes(file: Path, module: str, linear: Linear, a: Tensor, b: Tensor) -> None:
    fits = (
        a.ndim == 2
        and b.ndim == 2
        and a.shape[1] == linear.in_features
        and b.shape[0] == linear.out_features
        and a.shape[0] == b.shape[1]
    )
    if not fits:
        raise CheckpointError(
            f"{file}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; this model's layer is "
            f"[{linear.out_features}, {linear.in_features}] and needs [r, {linear.in_features}] and "
            f"[{linear.out_features}, r]: the adapter was made for another model"
        )


def _check_saved_along(file: Path, name: str, tensor: Tensor, parameter: Callable[[str], Tensor]) -> None:
    """Lets a copy of the model's own embedding or head pass; anything else is refused."""
    if ".lora_embedding_" in name:
        raise CheckpointError(
            f"{file} holds {name}: Corral adapts linear layers, not the embedding; {MERGE_BY_PEFT}"
        )
    if _SAVED_ALONG.fullmatch(name) is None:
        raise CheckpointError(f"{file} holds {name}, which is no LoRA weight of any linear layer")
    own = parameter(name.replace(".base_layer", ""))
    if tensor.shape != own.shape or not (own.is_meta or _same(tensor, own)):
        raise CheckpointError(
            f"{file} holds {name} {list(tensor.shape)}, which differs from this model's {list(own.shape)}: "
            "the adapter was trained on other embeddings; merge it into its own model, or save it with "
            "save_embedding_layers=False if they were not changed"
        )


def _same(copy: Tensor, own: Tensor) -> bool:
    """Equal in the coarser of the two types: either may have been rounded."""
    own = own.detach().to(copy.device)
    return torch.equal(copy.to(own.dtype), own) or torch.equal(copy, own.to(copy.dtype))


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    file = folder / SAFETENSORS
    if not file.is_file():
        file = folder / PICKLE
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no weights: neither {SAFETENSORS} nor {PICKLE}")
    try:
        tensors = _read_safetensors(file) if file.name == SAFETENSORS else _read_pickle(file)
    except Exception:  # a damaged file makes these readers raise nearly anything
        raise CheckpointError(
            f"{file} is truncated, damaged, or holds more than tensors; save or download the adapter again"
        ) from None
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_sparse:
            raise CheckpointError(f"{file} holds {name!r}, which is no plain tensor with a name")
    return file, tensors


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt", device="cpu") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def _read_pickle(file: Path) -> dict[str, Tensor]:
    return dict(torch.load(file, map_location="cpu", weights_only=True))
