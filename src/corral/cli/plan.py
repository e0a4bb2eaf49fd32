"""`corral plan`: how much memory a model takes, and what fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.model.presets import find_preset
from corral.plan import Inference, Plan, Training, make_plan, parse_devices, report
from corral.plan.devices import DEFAULT_RESERVE
from corral.plan.workload import Workload

if TYPE_CHECKING:
    from rich.table import Table

_SERVING, _TRAINING = "Serving", "Training"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Short name, Hub repository, folder or file.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Weights: float32, bfloat16, float16, fp8, int8, int4, nf4. Default: the model's."),
]
Batch = Annotated[int, typer.Option(help="Sequences at once; in training, on each device.")]
DeviceNames = Annotated[
    str | None, typer.Option("--devices", help="Like 80GB, 2x24GB or cpu. Default: this machine's memory.")
]
Reserve = Annotated[float, typer.Option(help="Fraction of each device to leave alone.")]
Context = Annotated[
    int | None,
    typer.Option(help="Tokens of each sequence, prompt and answer. Default: 8192.", rich_help_panel=_SERVING),
]
KVDtype = Annotated[
    str | None,
    typer.Option(
        help="KV cache: float32, bfloat16, float16, fp8, int8. Default: as the activations.",
        rich_help_panel=_SERVING,
    ),
]
PrefillChunk = Annotated[
    int | None, typer.Option(help="Prompt tokens read in one step. Default: 2048.", rich_help_panel=_SERVING)
]
Train = Annotated[
    str | None,
    typer.Option(help="Plan training instead of serving: full, lora or qlora.", rich_help_panel=_TRAINING),
]
Seq = Annotated[
    int | None, typer.Option(help="Tokens of each sequence. Default: 2048.", rich_help_panel=_TRAINING)
]
States = Annotated[
    str | None,
    typer.Option(help="AdamW in mixed (default), bf16, 8bit or float32.", rich_help_panel=_TRAINING),
]
LoraRank = Annotated[
    int | None, typer.Option(help="Rank of the adapters. Default: 16.", rich_help_panel=_TRAINING)
]
LoraTargets = Annotated[
    str | None,
    typer.Option(help="Matrices with adapters, like q_proj,v_proj. Default: all.", rich_help_panel=_TRAINING),
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--checkpointing/--no-checkpointing",
        help="Compute layers again in the backward pass. Default: yes.",
        rich_help_panel=_TRAINING,
    ),
]
LossChunk = Annotated[
    int | None,
    typer.Option(help="Tokens whose logits exist at once. Default: all.", rich_help_panel=_TRAINING),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, all sizes in bytes.")]


def plan(
    model: Model,
    dtype: Dtype = None,
    batch: Batch = 1,
    devices: DeviceNames = None,
    reserve: Reserve = DEFAULT_RESERVE,
    context: Context = None,
    kv_dtype: KVDtype = None,
    prefill_chunk: PrefillChunk = None,
    train: Train = None,
    seq: Seq = None,
    states: States = None,
    lora_rank: LoraRank = None,
    lora_targets: LoraTargets = None,
    checkpointing: Checkpointing = None,
    loss_chunk: LossChunk = None,
    as_json: AsJson = False,
) -> None:
    """Say how much memory a model takes, whether it fits, and what to change when it does not.

    Known models need no download; of others only the configuration is read.

    **Examples**

        corral plan llama-3.1-8b-instruct --devices 24GB
        corral plan llama-3.1-70b --dtype int4 --context 32768 --devices 2x24GB
        corral plan llama-3.1-8b --train qlora --seq 1024 --devices 16GB
        corral plan ./my-model --batch 8 --kv-dtype int8 --json
    """
    serving = _given(context=context, kv_dtype=kv_dtype, prefill_chunk=prefill_chunk)
    lora = _given(rank=lora_rank, targets=lora_targets)
    training = _given(seq=seq, states=states, checkpointing=checkpointing, loss_chunk=loss_chunk)
    if train is None:
        _refuse(lora | training, "is for training; add --train full, lora or qlora")
    else:
        _refuse(serving, "is for serving; leave it or --train out")
    if train == "full":
        _refuse(lora, "is for --train lora or qlora")
    if lora_targets is not None:
        lora["targets"] = _names(lora_targets)
    hardware = parse_devices(devices, reserve)
    config = _read(model)
    common = {"batch": batch, "dtype": dtype}
    workload: Workload
    if train is None:
        workload = Inference(**{"context": _up_to(8192, config)} | serving | common)
    else:
        workload = Training(method=train, **{"seq": _up_to(2048, config)} | lora | training | common)
    _show(make_plan(config, workload, hardware, model), as_json)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the workload."""
    return {name: value for name, value in options.items() if value is not None}


def _up_to(length: int, config: LlamaConfig) -> int:
    return min(length, config.max_position_embeddings)


def _read(model: str) -> LlamaConfig:
    """A preset's shape; else what a folder, a file or the Hub says."""
    preset = find_preset(model)
    if preset is not None and not Path(model).exists():
        return preset.config
    from corral.checkpoints.source import read_config

    return read_config(model)


def _refuse(options: Mapping[str, object], why: str) -> None:
    for name in options:
        flag = f"lora-{name}" if name in ("rank", "targets") else name.replace("_", "-")
        raise PlanError(f"--{flag} {why}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _show(result: Plan, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    lines = [report.verdict(result), *report.limits(result), *report.advice(result)]
    console.print(report.heading(result), markup=False, soft_wrap=True)
    console.print(_table(result))
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _table(result: Plan) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("on each device", no_wrap=True)
    table.add_column("GiB (2**30)", justify="right", no_wrap=True)
    table.add_column("GB (10**9)", justify="right", no_wrap=True)
    table.add_column("how")
    *parts, total = report.rows(result)
    for row in parts:
        table.add_row(*(Text(cell) for cell in row))
    table.add_section()
    table.add_row(*(Text(cell) for cell in total), style="bold")
    return table
