"""`corral compare`: what one model's predictions differ by from another's."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import eval_options, options

if TYPE_CHECKING:
    from rich.table import Table

    from corral.evals.compare import ComparisonResult

_REFERENCE = "The reference, where it runs otherwise than MODEL"
_NAME = "Short name, Hub name (org/name[@revision]), folder, or .gguf file."

Reference = Annotated[str, typer.Argument(metavar="REFERENCE", help=f"What is right. {_NAME}")]
Candidate = Annotated[str, typer.Argument(metavar="MODEL", help=f"What is compared with it. {_NAME}")]


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=_REFERENCE)


@dataclass(frozen=True)
class Otherwise:
    """What of the reference is not as the options for both say."""

    reference_dtype: Annotated[str | None, _option("As --dtype.")] = None
    reference_kernels: Annotated[str | None, _option("As --kernels.")] = None
    reference_kv_cache_dtype: Annotated[
        str | None, _option("As --kv-cache-dtype.", "--reference-kv-cache-dtype")
    ] = None
    reference_exact_activations: Annotated[
        bool | None,
        _option(
            "As --exact-activations.",
            "--reference-exact-activations/--no-reference-exact-activations",
        ),
    ] = None

    def changes(self) -> dict[str, Any]:
        """By the names that both models' options have."""
        return {name.removeprefix("reference_"): value for name, value in vars(self).items()}


@options.grouped
def compare(
    reference: Reference,
    model: Candidate,
    text: eval_options.TextFile,
    cutting: eval_options.Cutting = eval_options.Cutting(),
    computing: eval_options.Computing = eval_options.Computing(),
    otherwise: Otherwise = Otherwise(),
    as_json: eval_options.AsJson = False,
) -> None:
    """Measure what a quantization costs: how far a model's predictions are from a reference's, on a text.

    Both read the same tokens. KL divergence is that of the model's next-token probabilities from the
    reference's, over the whole vocabulary; top-1 agreement says how often both hold the same token for
    the likeliest. What follows ± is the standard error, that of the ratio being of paired differences. The
    options that are not for the reference alone are for both.

    **Examples**

        corral compare ./my-model ./my-model-int4 --text book.txt
        corral compare ./my-model ./my-model --quantize nf4 --text book.txt
        corral compare org/name org/name-GGUF:name-Q4_K_M.gguf --text book.txt --tokens 20000
        corral compare ./my-model ./my-model --reference-dtype float32 --reference-kernels torch --text a.txt
    """
    from corral.cli.count_progress import CountReport
    from corral.evals.compare import compare as measure
    from corral.evals.texts import read_texts

    windows = cutting.options()
    as_read = replace(computing, quantize=None)
    setups = as_read.setup(reference, **otherwise.changes()), computing.setup(model)
    texts = read_texts(text, jsonl=cutting.jsonl)
    with CountReport() as report:
        result = measure(*setups, texts, windows, report=report, progress=partial(report.count, "tokens"))
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_losses(result))
    console.print(_differences(result))


def _losses(result: ComparisonResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("")
    table.add_column("perplexity", justify="right", no_wrap=True)
    table.add_column("bits per byte", justify="right", no_wrap=True)
    table.add_column("how")
    form = "{model}, {dtype}, {device}, {kernels} kernels, {kv_cache_dtype} KV cache"
    for name, setup, loss in (
        ("reference", result.reference_setup, result.reference),
        ("model", result.candidate_setup, result.candidate),
    ):
        facts = setup.to_dict()
        how = form.format(**facts) + (", exact activations" if facts["exact_activations"] else "")
        how += f", quantized to {facts['quantize']}" if facts["quantize"] else ""
        perplexity = eval_options.plus_minus(loss.perplexity, ",.4f")
        table.add_row(name, perplexity, f"{loss.bits_per_byte:.4f}", Text(how))
    return table


def _differences(result: ComparisonResult) -> Table:
    from rich.table import Table

    kl, reading = result.divergence, result.reading
    table = Table()
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how")
    shown = eval_options.plus_minus
    table.add_row("KL divergence", shown(kl.mean, ".6f"), "nats per token, the mean")
    for percent, value in kl.percentiles.items():
        table.add_row(f"  {percent:g}%", f"{value:.6f}", "of the tokens have at most this")
    table.add_row("  largest", f"{kl.maximum:.6f}", "")
    table.add_row("top-1 agreement", shown(result.top1_agreement, ".3f", 100), "percent of the tokens")
    table.add_row("perplexity ratio", shown(result.perplexity_ratio, ".5f"), "model over reference, paired")
    cut = f"{reading.windows:,} windows, context {reading.context:,}, stride {reading.stride:,}"
    table.add_row("tokens", f"{result.reference.num_tokens:,}", cut)
    return table
