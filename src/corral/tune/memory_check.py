"""Whether a run fits into memory, by the arithmetic of `corral plan`, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from corral.model.config import LlamaConfig
from corral.plan.devices import DEFAULT_RESERVE, Devices, parse_devices
from corral.plan.planner import make_plan
from corral.plan.shapes import LINEARS
from corral.plan.training import Training
from corral.tune.config import RunConfig
from corral.tune.errors import TuneError

_SETTINGS: Mapping[str, str] = {
    "--states": "optimizer.states",
    "--dtype": "compute.dtype",
    "--checkpointing": "compute.checkpointing",
    "--loss-chunk": "compute.loss_chunk",
    "--batch": "batch.size",
    "--seq": "data.max_length",
    "--train": "parameters.method",
}
_VALUES: Mapping[tuple[str, str], str] = {
    ("--states", "8bit"): "optimizer.name=adamw_8bit",
    ("--train", "qlora"): "parameters.method=lora parameters.base=nf4",
    ("--checkpointing", ""): "compute.checkpointing=full",
}


def require_memory(
    config: RunConfig, model: LlamaConfig, length: int, dtype: torch.dtype, devices: Devices
) -> None:
    """Refuses a run that would take more memory than there is.

    Args:
        config: the run.
        model: the model's shape.
        length: tokens of a row.
        dtype: of weights and activations.
        devices: what it would run on.

    Raises:
        TuneError: it does not fit; the message says what it takes, what there is, and settings that help.
    """
    plan = make_plan(model, _workload(config, length, dtype), devices)
    if plan.fits:
        return
    changes = list(_settings(plan.suggestions[0].flags)) if plan.suggestions else []
    hint = f"; --set {' --set '.join(changes)} would fit" if changes else "; take a smaller model"
    raise TuneError(
        f"not enough memory: this run takes {plan.total / 1e9:.1f} GB by the sums of `corral plan`, and "
        f"{devices.name} has {devices.usable / 1e9:.1f} GB to use{hint}; "
        "--set compute.check_memory=false tries anyway"
    )


def devices_of(device: torch.device, ranks: int) -> Devices:
    """The memory of a device, times the processes that share the model's."""
    if device.type != "cuda":
        return parse_devices("cpu")
    _, total = torch.cuda.mem_get_info(device)
    return Devices(str(device), ranks, total, DEFAULT_RESERVE)


def _workload(config: RunConfig, length: int, dtype: torch.dtype) -> Training:
    parameters, optimizer = config.parameters, config.optimizer
    width = "float32" if dtype == torch.float32 else "bfloat16"
    method = {"full": "full"}.get(parameters.method, "qlora" if parameters.base else "lora")
    targets = tuple(name for name in LINEARS if _is_target(parameters.targets, name))
    return Training(
        method=method,
        seq=length,
        batch=config.batch.size,
        states=_states(config, width if method == "full" else "float32", optimizer.states),
        dtype=width if method == "lora" else None,
        rank=parameters.rank,
        targets=targets or LINEARS,
        checkpointing=config.compute.checkpointing == "full",
        loss_chunk=config.compute.loss_chunk,
    )


def _states(config: RunConfig, width: str, states: str) -> str:
    if config.optimizer.name == "adamw_8bit":
        return "8bit"
    if width == "float32":
        return "float32"
    return "mixed" if states == "float32" else "bf16"


def _is_target(targets: list[str] | str, name: str) -> bool:
    return isinstance(targets, str) or name in targets


def _settings(flags: Mapping[str, str]) -> Iterator[str]:
    """Flags of `corral plan` as settings of a run."""
    for flag, value in flags.items():
        known = _VALUES.get((flag, value))
        if known is not None:
            yield from known.split()
        elif flag in _SETTINGS:
            yield f"{_SETTINGS[flag]}={value}"
