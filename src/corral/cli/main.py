"""The `corral` command: its verbs, and what happens when one of them fails.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. A failure that is the user's to mend is one
sentence on standard error; `--debug` shows the traceback too.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import corral
from corral.cli.bench import bench
from corral.cli.cache import cache
from corral.cli.chat import chat
from corral.cli.compare import compare
from corral.cli.export import export
from corral.cli.generate import generate
from corral.cli.info import info
from corral.cli.merge import merge
from corral.cli.perplexity import perplexity
from corral.cli.plan import plan
from corral.cli.pull import pull
from corral.cli.quantize import quantize
from corral.cli.serve import serve
from corral.cli.tune import tune
from corral.errors import CorralError

FAILED, INTERRUPTED = 1, 130

app = typer.Typer(
    name="corral",
    help="One command for the whole life of a Llama 3 family model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (chat, serve, generate, pull, info, export, plan, bench, quantize, merge, perplexity, compare):
    app.command()(verb)
app.add_typer(tune, name="tune")
app.add_typer(cache, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"corral {corral.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One command for the whole life of a Llama 3 family model."""


def main() -> None:
    """Runs the command and exits with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command with these arguments and gives its exit status."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = _invoke(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _detach_stdout()
        return _fail("standard output was closed before everything was written")
    except (CorralError, OSError, MemoryError) as error:
        if debug:
            raise
        return _fail(_sentence(error))
    return status


def _invoke(arguments: list[str]) -> int:
    """Lets typer run the verb, and say what is wrong with its usage; it always ends with an exit status."""
    try:
        app(arguments, prog_name="corral")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # which typer passes over in silence
            raise end.__context__ from None
        return end.code if isinstance(end.code, int) else FAILED
    return 0


def _fail(sentence: str) -> int:
    typer.echo(f"corral: {sentence}", err=True)
    return FAILED


def _sentence(error: BaseException) -> str:
    if isinstance(error, CorralError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory; `corral plan` shows what fits"
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or str(error)
    return f"{name}: {reason}" if name else reason


def _detach_stdout() -> None:
    """Keeps the interpreter from failing again when it flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
