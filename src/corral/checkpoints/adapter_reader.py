"""Reads the LoRA adapters that PEFT writes: adapter_config.json and adapter_model.safetensors (or .bin).

The format is that of PEFT's guide to its checkpoints: `base_model.model.` and the module's name, then
`.lora_A.weight` [r, in_features] or `.lora_B.weight` [out_features, r].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from corral.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterConfig
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.quant.linear import QuantizedLinear

SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"

_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
# PEFT saves these along, unchanged, when the head is adapted.
_SAVED_ALONG = re.compile(r"(model\.embed_tokens|lm_head)(\.base_layer)?\.weight")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Linear = nn.Linear | QuantizedLinear


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a linear layer of x: scale * (x @ a.T @ b.T); a [r, in], b [out, r]."""

    a: Tensor
    b: Tensor
    scale: float


def read_adapter(
    folder: Path, model: nn.Module, parameter: Callable[[str], Tensor] | None = None
) -> dict[str, LowRank]:
    """What the adapter in a folder adds, by the names of the model's linear layers.

    The weights in the file decide which layers are adapted. The tensors may be views of the mapped file.
    `parameter` gives the model's own weights by name, where they are not those of `model`.

    Raises:
        CheckpointError: a file is missing or damaged, the adapter is not plain LoRA, or it is for another
            model; the message names the file and the field or module.
    """
    config = AdapterConfig.read(folder / ADAPTER_CONFIG)
    file, tensors = _read_tensors(folder)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        match = _HALF.fullmatch(name)
        if match is None:
            _check_saved_along(file, name, tensor, parameter or model.get_parameter)
            continue
        if match["half"] in halves.setdefault(match["module"], {}):
            raise CheckpointError(f"{file} holds lora_{match['half']} of {match['module']} twice")
        halves[match["module"]][match["half"]] = tensor
    if not halves:
        raise CheckpointError(f"{file} holds no LoRA weights; save the adapter again")
    return {
        module: _low_rank(file, config, module, linears.get(module), pair) for module, pair in halves.items()
    }


def check_adapter(folder: Path, config: LlamaConfig) -> None:
    """Raises CheckpointError where `read_adapter` would for a model of this shape, which need not be loaded.

    Only whether a copy of the embedding is that of the model remains open.
    """
    read_adapter(folder, Llama.on_meta(config))


def _low_rank(
    file: Path, config: AdapterConfig, module: str, linear: Linear | None, halves: Mapping[str, Tensor]
) -> LowRank:
    if linear is None:
        raise CheckpointError(
            f"{file} has weights for {module}, which is no linear layer of this model; "
            "the adapter was made for another model"
        )
    for half in ("A", "B"):
        if half not in halves:
            raise CheckpointError(f"{file} lacks lora_{half} of {module}; save or download the adapter again")
    a, b = halves["A"], halves["B"]
    _check_shapes(file, module, linear, a, b)
    rank = config.rank_of(module)
    if a.shape[0] != rank:
        raise CheckpointError(
            f"{file}: {module} has rank {a.shape[0]}, but r and rank_pattern in {ADAPTER_CONFIG} say {rank}; "
            "the two files do not belong together"
        )
    for half, tensor in halves.items():
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{file}: lora_{half} of {module} is of type {str(tensor.dtype).removeprefix('torch.')}; "
                "Corral reads float32, bfloat16 and float16"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{file}: lora_{half} of {module} holds numbers that are not finite")
    return LowRank(a, b, config.scale_of(module))


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
            f"{file} holds {name}: Corral adapts linear layers, not the embedding; merge the adapter into "
            "its model (PEFT's merge_and_unload) and run the result"
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
