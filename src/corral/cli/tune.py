"""`corral tune`: train a model, one verb for each objective."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from corral.tune.config import RunConfig

tune = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="A YAML file of settings.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting, such as optimizer.lr=1e-4; may be given again."
    ),
]
Model = Annotated[str | None, typer.Option(help="The model to train.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(
        help="Rows to train on: .jsonl, .parquet, a folder of `datasets`, or org/name on the Hub.",
        show_default=False,
    ),
]
Output = Annotated[str | None, typer.Option("--output", "-o", help="The run folder.", show_default=False)]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder, if it has one.")
]
Processes = Annotated[int, typer.Option("--nproc", min=1, help="Processes on this machine, one to a device.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all settings as YAML, and end.")]


@tune.callback()
def train(context: typer.Context, print_config: PrintConfig = False) -> None:
    """Train a model: fine-tune it, align it with preferences, go on pretraining it.

    What is trained is an adapter (LoRA) unless `parameters.method` says full. The run folder gets the adapter
    or the model, checkpoints, metrics, and a model card; `corral serve --adapter name=FOLDER/adapter` serves
    what came out.

    **Examples**

        corral tune sft --data chats.jsonl --output my-run
        corral tune sft --config run.yaml --set optimizer.lr=1e-4
        corral tune dpo --model ./my-model --data preferences.jsonl
        corral tune inspect chats.jsonl
        corral tune --print-config
    """
    if context.invoked_subcommand is not None:
        return
    if not print_config:
        typer.echo(context.get_help())
        raise typer.Exit
    from corral.tune.config_file import read_config, to_yaml

    typer.echo(to_yaml(read_config(None, ["data.train=rows.jsonl"])), nl=False)


def _verb(objective: str, help: str) -> None:
    def run(
        config: Config = None,
        settings: Settings = None,
        model: Model = None,
        data: Data = None,
        output: Output = None,
        resume: Resume = False,
        nproc: Processes = 1,
        print_config: PrintConfig = False,
    ) -> None:
        chosen = _chosen(config, settings or [], objective=objective, model=model, output=output, data=data)
        if print_config:
            from corral.tune.config_file import to_yaml

            typer.echo(to_yaml(chosen), nl=False)
            return
        if nproc > 1:
            from corral.tune.launch import launch

            raise typer.Exit(launch(_without_nproc(sys.argv[1:]), nproc))
        raise typer.Exit(_run(chosen, resume=resume))

    run.__doc__ = help
    tune.command(objective)(run)


_verb("sft", "Supervised fine-tuning on dialogs, prompts with completions, or texts.")
_verb("pretrain", "Go on pretraining on plain texts: every token is trained.")
_verb("dpo", "Direct preference optimization on pairs of completions.")
_verb("kto", "Alignment with completions that are good or bad, not in pairs.")
_verb("orpo", "Fine-tuning and preferences at once, without a reference.")
_verb("reward", "Train a reward model on pairs of completions.")


@tune.command()
def inspect(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="As --data of the other verbs.")] = None,
    config: Config = None,
    settings: Settings = None,
    model: Model = None,
    objective: Annotated[str, typer.Option(help="What the rows are for.")] = "sft",
    rows: Annotated[int, typer.Option(min=0, help="Rows to show token by token.")] = 3,
) -> None:
    """Show rows as they would be trained on: tokens by mask, lengths, what is cut, duplicates.

    **Examples**

        corral tune inspect chats.jsonl
        corral tune inspect preferences.parquet --objective dpo --model llama-3.1-8b-instruct
        corral tune inspect --config run.yaml --rows 10
    """
    chosen = _chosen(config, settings or [], objective=objective, model=model, data=data)
    from rich.console import Console

    from corral.cli.progress import TerminalReport
    from corral.tune.data.inspect import inspect_data
    from corral.tune.inputs import Inputs

    with TerminalReport() as report:
        inputs = Inputs.open(chosen, report)
    packs = chosen.data.packing and chosen.objective in ("sft", "pretrain")
    inspect_data(inputs.data, inputs.tokenizer, Console(highlight=False), rows=rows, packing=packs)


def _without_nproc(arguments: list[str]) -> list[str]:
    """The arguments of one of the processes."""
    kept: list[str] = []
    coming = iter(arguments)
    for argument in coming:
        if argument == "--nproc":
            next(coming, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def _chosen(config: Path | None, settings: list[str], *, data: str | None, **given: Any) -> RunConfig:
    from corral.tune.config_file import read_config

    train = [] if data is None else [f"data.train={json.dumps(data)}"]
    return read_config(config, [*train, *settings], **given)


def _run(config: RunConfig, *, resume: bool) -> int:
    from corral.cli.progress import TerminalReport
    from corral.tune.run import run

    with TerminalReport() as report:
        return run(config, resume=resume, report=report)
