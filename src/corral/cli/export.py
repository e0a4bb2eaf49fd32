"""`corral export`: write a checkpoint in another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from corral.cli import options
from corral.errors import RequestError


class Format(StrEnum):
    """What can be written."""

    hf = "hf"
    gguf = "gguf"


class GgufType(StrEnum):
    """What the matrices of a GGUF file can be: `corral.checkpoints.gguf_encode.TYPES`, which takes long to
    import."""

    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"
    q8_0 = "q8_0"
    q4_1 = "q4_1"
    q4_0 = "q4_0"


Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder or .gguf file to write; it must not exist yet.")
]
To = Annotated[
    Format,
    typer.Option("--to", help="hf: a Hugging Face folder with safetensors. gguf: a file for llama.cpp."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="With --to hf: float32, bfloat16, float16, or auto for the checkpoint's own (the default).",
        show_default=False,
    ),
]
Kind = Annotated[
    GgufType | None,
    typer.Option(
        "--type",
        help="With --to gguf: the type of matrices; bf16 by default. Norms are f32; the embedding and "
        "the head beside quantized matrices are q8_0.",
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Writes the chat template of this Llama 3 family, such as llama-3.1, in place of the "
        "checkpoint's own.",
        show_default=False,
    ),
]


def export(
    source: options.Model,
    out: Out,
    to: To = Format.hf,
    dtype: Dtype = None,
    kind: Kind = None,
    prompt_format: Template = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder or a GGUF file: weights, shape, tokenizer, chat template.

    The folder or file appears whole or not at all. A Llama 3 instruct model that comes without a chat
    template, such as Meta's own files, gets that of its family. A quantized checkpoint keeps its codes in a
    GGUF file whose type holds them: q4_0 for symmetric 4 bits, q4_1 for others, q8_0 for symmetric 8 bits, in
    groups of a multiple of 32 columns.

    **Examples**

        corral export smollm2-135m-instruct --to hf ./smollm2
        corral export ./Meta-Llama-3.1-8B-Instruct/original --to hf ./llama-3.1-8b-instruct
        corral export ./my-tune.gguf --to hf ./my-tune --prompt-format llama-3.1
        corral export ./my-tune --to gguf --type q8_0 ./my-tune.gguf
    """
    from corral.checkpoints.source import open_model
    from corral.cli.progress import TerminalReport
    from corral.devices import parse_dtype

    _check(out, to, dtype, kind, prompt_format)
    wanted = None if dtype in (None, "auto") else parse_dtype(dtype)
    with TerminalReport() as report:
        checkpoint = open_model(source, report)
        if to is Format.gguf:
            from corral.checkpoints.gguf_encode import TYPES
            from corral.checkpoints.gguf_writer import export_gguf

            export_gguf(checkpoint, out, TYPES[kind or GgufType.bf16], prompt_format, report)
        else:
            from corral.checkpoints.hf_writer import export_hf

            export_hf(checkpoint, out, wanted, prompt_format, report=report)
    typer.echo(out)


def _check(
    out: Path, to: Format, dtype: str | None, kind: GgufType | None, prompt_format: str | None
) -> None:
    """Refuses what is wrong before anything is fetched."""
    from corral.checkpoints.new_file import require_new_file
    from corral.checkpoints.new_folder import require_new
    from corral.text.prompt_format import family_with_template

    if prompt_format is not None:
        family_with_template(prompt_format)
    if to is Format.gguf:
        if dtype is not None:
            types = ", ".join(GgufType)
            raise RequestError(f"--dtype is for --to hf; the type of a GGUF file is --type: {types}")
        require_new_file(out, ".gguf")
        return
    if kind is not None:
        raise RequestError("--type is for --to gguf; the type of a Hugging Face folder is --dtype")
    if out.suffix == ".gguf" and not out.exists():
        raise RequestError(f"--to hf writes a folder, but {out} ends in .gguf; give --to gguf")
    require_new(out)
