"""Writes adapters as PEFT does: adapter_config.json and adapter_model.safetensors, and a note of Corral's."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from corral.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterConfig
from corral.checkpoints.adapter_reader import PREFIX, SAFETENSORS, AdapterWeights
from corral.checkpoints.checkpoint import read_json
from corral.checkpoints.new_folder import new_folder
from corral.errors import CheckpointError

NOTE = "corral.json"
FULL, STORED = "full precision", "as stored"
"""What the weights under an adapter were, besides the schemes of `corral.quant.on_load`: dense, or quantized
as the checkpoint has them."""

# The fields of PEFT 0.21's LoraConfig that say nothing here; without them it would fill in the same.
_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("auto_mapping", "exclude_modules", "layers_to_transform", "layers_pattern")),
    **dict.fromkeys(("layer_replication", "modules_to_save", "revision", "target_parameters")),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens", "megatron_config")),
    **dict.fromkeys(("fan_in_fan_out", "lora_bias", "use_qalora", "ensure_weight_tying"), False),
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "loftq_config": {},
}


def write_adapter(
    folder: Path,
    weights: AdapterWeights,
    linears: Collection[str],
    base_model: str | None = None,
    base_weights: str = FULL,
) -> None:
    """Writes an adapter as a folder that PEFT and Corral load.

    The folder appears whole or not at all.

    Args:
        folder: must not exist yet, or be empty.
        weights: of the adapter.
        linears: the names of all linear layers of the model, from which short names of the adapted ones come.
        base_model: the name or folder of the model, as PEFT finds it.
        base_weights: what the adapter was trained over: `FULL`, `STORED`, or a scheme of quantization.

    Raises:
        CheckpointError: `folder` exists and is not empty, or the disk is full.
    """
    tensors = dict(_tensors(weights))
    with new_folder(folder, sum(tensor.nbytes for tensor in tensors.values())) as partial:
        _save(partial / SAFETENSORS, tensors)
        _write_json(
            partial / ADAPTER_CONFIG,
            adapter_fields(weights.config, targets_of(weights.layers, linears), base_model),
        )
        _write_json(partial / NOTE, {"base_weights": base_weights})


def adapter_fields(
    config: AdapterConfig, targets: Collection[str], base_model: str | None = None
) -> dict[str, Any]:
    """The fields of an adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": config.rank,
        "lora_alpha": _number(config.alpha),
        "lora_dropout": config.dropout,
        "bias": config.bias,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "rank_pattern": {key: int(rank) for key, rank in config.rank_pattern},
        "alpha_pattern": {key: _number(alpha) for key, alpha in config.alpha_pattern},
        "target_modules": list(targets),
        **_EMPTY,
    }


def targets_of(adapted: Iterable[str], linears: Collection[str]) -> list[str]:
    """What names just the adapted layers to PEFT: the ends of their names where that is enough."""
    wanted = set(adapted)
    ends = {name.rpartition(".")[2] for name in wanted}
    shared = {name.rpartition(".")[2] for name in linears if name not in wanted}
    return [*sorted(ends - shared), *sorted(n for n in wanted if n.rpartition(".")[2] in shared)]


def read_base_weights(folder: Path) -> str | None:
    """What the adapter in a folder was trained over, where Corral has written it; else None.

    Raises:
        CheckpointError: the note is damaged.
    """
    file = folder / NOTE
    if not file.is_file():
        return None
    value = read_json(file).get("base_weights")
    if not isinstance(value, str):
        raise CheckpointError(f"{file}: base_weights is {value!r}; it must be a text, such as {FULL!r}")
    return value


def _tensors(weights: AdapterWeights) -> Iterable[tuple[str, Tensor]]:
    for module, added in weights.layers.items():
        yield f"{PREFIX}{module}.lora_A.weight", added.a.detach().cpu().contiguous()
        yield f"{PREFIX}{module}.lora_B.weight", added.b.detach().cpu().contiguous()
        if added.magnitude is not None:
            yield f"{PREFIX}{module}.lora_magnitude_vector", added.magnitude.detach().cpu().contiguous()
    for module, bias in weights.biases.items():
        place = ".base_layer" if module in weights.layers else ""
        yield f"{PREFIX}{module}{place}.bias", bias.detach().cpu().contiguous()


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # as it calls a disk that is full
        raise OSError(str(error)) from None
    file.chmod(mode)  # the library's own is for the owner alone


def _number(value: float) -> int | float:
    """PEFT's own alphas are whole numbers."""
    return int(value) if float(value).is_integer() else value


def _write_json(file: Path, fields: object) -> None:
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
