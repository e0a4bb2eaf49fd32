"""`corral export`: write a checkpoint in another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from corral.cli import options


class Format(StrEnum):
    """What can be written."""

    hf = "hf"


def export(
    source: options.RequiredModel,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist yet.")],
    to: Annotated[
        Format, typer.Option("--to", help="hf: a Hugging Face folder with safetensors.")
    ] = Format.hf,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")
    ] = "auto",
    prompt_format: Annotated[
        str | None,
        typer.Option(
            help="Writes the chat template of this Llama 3 family, such as llama-3.1, in place of the "
            "checkpoint's own.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, configuration, tokenizer, chat template.

    The folder appears whole or not at all. A Llama 3 instruct model that comes without a chat template, such
    as Meta's own files, gets that of its family.

    **Examples**

        corral export smollm2-135m-instruct --to hf ./smollm2
        corral export ./Meta-Llama-3.1-8B-Instruct/original --to hf ./llama-3.1-8b-instruct
        corral export ./my-tune.gguf --to hf ./my-tune --prompt-format llama-3.1
    """
    from corral.checkpoints.hf_writer import export_hf
    from corral.checkpoints.source import open_model
    from corral.cli.progress import TerminalReport
    from corral.devices import parse_dtype
    from corral.text.prompt_format import family_with_template

    assert to is Format.hf, "typer accepts only known formats"
    # A wrong option is refused before anything is fetched.
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    if prompt_format is not None:
        family_with_template(prompt_format)
    with TerminalReport() as report:
        checkpoint = open_model(source, report)
        export_hf(checkpoint, out, wanted, prompt_format, report=report)
    typer.echo(out)
