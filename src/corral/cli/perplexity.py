"""`corral perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import typer

from corral.cli import eval_options, options

if TYPE_CHECKING:
    from rich.table import Table

    from corral.evals.perplexity import PerplexityResult


@options.grouped
def perplexity(
    text: eval_options.TextFile,
    model: options.Model = options.DEFAULT,
    cutting: eval_options.Cutting = eval_options.Cutting(),
    computing: eval_options.Computing = eval_options.Computing(),
    as_json: eval_options.AsJson = False,
) -> None:
    """Measure how well a model predicts a text: perplexity, and bits per byte.

    The text is cut into windows, and each token is predicted from those before it in its window. Bits per
    byte compare models with different tokenizers. What follows ± is the standard error.

    **Examples**

        corral perplexity --text book.txt
        corral perplexity llama-3.2-1b --text book.txt --context 2048 --stride 512
        corral perplexity ./my-model --text rows.jsonl --tokens 50000 --json
    """
    from corral.cli.count_progress import CountReport
    from corral.evals.perplexity import perplexity as measure
    from corral.evals.texts import read_texts

    windows, setup = cutting.options(), computing.setup(model)
    texts = read_texts(text, jsonl=cutting.jsonl)
    with CountReport() as report:
        result = measure(setup, texts, windows, report=report, progress=partial(report.count, "tokens"))
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    Console(highlight=False).print(_table(result))


def _table(result: PerplexityResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    facts, loss = result.to_dict(), result.loss
    heading = "{model}, {dtype}, {device}, {kernels} kernels, {threads} threads"
    heading += ", quantized to {quantize}" if facts["quantize"] else ""
    table = Table(title=Text(heading.format(**facts)))
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how")
    windows = f"{facts['windows']:,} windows, context {facts['context']:,}, stride {facts['stride']:,}"
    shown = eval_options.plus_minus
    table.add_row("loss", shown(loss.nll, ".4f"), "nats per token, the mean")
    table.add_row("perplexity", shown(loss.perplexity, ",.4f"), "e to the power of the loss")
    table.add_row("bits per byte", f"{loss.bits_per_byte:.4f}", f"{loss.num_bytes:,} bytes were predicted")
    table.add_row("tokens", f"{loss.num_tokens:,}", windows)
    table.add_row("speed", f"{facts['tokens_per_second']:,.1f} tok/s", f"{facts['run_tokens']:,} tokens run")
    return table
