"""`corral pull`: bring a model's newest state onto this machine and say where it is."""

from __future__ import annotations

from typing import Annotated

import typer

from corral.model.presets import DEFAULT_MODEL

_MODEL_HELP = "A short name, org/name[@revision][:file.gguf] on the Hub, or a local path."


def pull(model: Annotated[str, typer.Argument(help=_MODEL_HELP)] = DEFAULT_MODEL) -> None:
    """Download a model, or bring a downloaded one up to date, and print its path.

    Only what is missing is fetched, every file is checked by its hash, and a model counts as present only
    when all of it is. The other commands use what is present without asking the network.

    For a gated model, accept its licence on its page and set HF_TOKEN to an access token.

    **Examples**

        corral pull
        corral pull llama-3.2-1b-instruct
        corral pull HuggingFaceTB/SmolLM2-360M-Instruct@main
        corral pull org/name-GGUF:name-Q4_K_M.gguf
    """
    from corral.checkpoints.resolve import resolve
    from corral.cli.progress import TerminalReport

    with TerminalReport() as report:
        path = resolve(model, report=report, refresh=True)
    typer.echo(path)
