"""`corral quantize`: write a model with its weights in fewer bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options
from corral.cli.eval_options import AsJson, in_panel

if TYPE_CHECKING:
    from rich.table import Table

    from corral.quantizer.recipe import Recipe
    from corral.quantizer.result import QuantizeResult
    from corral.quantizer.texts import TextSources

_NUMBERS, _TEXT, _RUN = "Numbers", "Text", "Run"


@dataclass(frozen=True)
class Numbers:
    """What weights become, and how."""

    method: Annotated[
        str,
        in_panel("rtn (the nearest numbers), awq, gptq, or fp8.", _NUMBERS),
    ] = "gptq"
    bits: Annotated[int | None, in_panel("Bits of a weight; 4 by default.", _NUMBERS)] = None
    group_size: Annotated[
        int | None,
        in_panel("Columns that share a scale, -1 for a whole row; 128 by default.", _NUMBERS),
    ] = None
    format: Annotated[
        str | None,
        in_panel(
            "compressed-tensors, awq, gptq, bitsandbytes (nf4), fbgemm_fp8, or gguf; by default that of the "
            "method, and compressed-tensors for rtn and fp8.",
            _NUMBERS,
        ),
    ] = None
    symmetric: Annotated[
        bool | None,
        in_panel(
            "Without zero points, or with; with them by default for awq.",
            _NUMBERS,
            "--symmetric/--asymmetric",
        ),
    ] = None
    preset: Annotated[
        str | None,
        in_panel(
            "Of fp8: dynamic (the default), static, block, or meta: the feed-forward layers but the first "
            "and the last, as Meta published Llama 3.1 405B.",
            _NUMBERS,
        ),
    ] = None
    int8_activations: Annotated[
        bool,
        in_panel("Inputs, too, in 8 bits, with 8-bit weights: W8A8.", _NUMBERS, "--int8-activations"),
    ] = False
    search: Annotated[
        bool,
        in_panel("Search the range of each group, with rtn and gptq.", _NUMBERS, "--search"),
    ] = False
    ignore: Annotated[
        list[str] | None,
        in_panel(
            "Leave modules as they are: the end of a name, such as down_proj, or a regular expression; may "
            "be given again.",
            _NUMBERS,
        ),
    ] = None

    def recipe(self) -> Recipe:
        """As the library takes it."""
        from corral.quantizer.recipe import Recipe

        return Recipe.of(**{**vars(self), "ignore": self.ignore or ()})


@dataclass(frozen=True)
class TextOptions:
    """What the model is calibrated and evaluated on."""

    calibration: Annotated[
        str | None,
        in_panel(
            "Text to calibrate on: .txt, .jsonl or .parquet with text or messages, or a folder of a "
            "dataset; the model's own samples by default.",
            _TEXT,
        ),
    ] = None
    samples: Annotated[int, in_panel("Windows of text.", _TEXT)] = 128
    length: Annotated[int, in_panel("Tokens of a window.", _TEXT)] = 512
    eval_text: Annotated[
        str | None,
        in_panel("Text for perplexity before and after; by default what calibration leaves over.", _TEXT),
    ] = None
    eval_samples: Annotated[int, in_panel("Windows for perplexity; 0 for none.", _TEXT)] = 16
    seed: Annotated[int, in_panel("Of the model's own samples.", _TEXT)] = 0

    def sources(self) -> TextSources:
        """As the library takes them."""
        from corral.quantizer.calibration import CalibrationOptions
        from corral.quantizer.texts import TextSources

        chosen = CalibrationOptions(self.samples, self.length, self.seed)
        return TextSources(self.calibration, self.eval_text, chosen, self.eval_samples)


@dataclass(frozen=True)
class Running:
    """Where it runs."""

    dtype: Annotated[
        str,
        in_panel("Of what is not quantized: bfloat16, float16, float32, or auto.", _RUN),
    ] = "auto"
    device: Annotated[str, in_panel("cpu, cuda, or auto.", _RUN)] = "auto"
    threads: Annotated[int | None, in_panel("Threads on a CPU.", _RUN)] = None
    restart: Annotated[bool, in_panel("Forget what an interrupted run has finished.", _RUN, "--restart")] = (
        False
    )


@options.grouped
def quantize(
    model: options.Model,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder or .gguf file to write; it must not exist yet.")
    ],
    numbers: Numbers = Numbers(),
    text: TextOptions = TextOptions(),
    running: Running = Running(),
    as_json: AsJson = False,
) -> None:
    """Write a model with its weights in fewer bits, for Corral, transformers, vLLM or llama.cpp.

    Layer after layer, so that the model need not fit into memory; after a kill the same command goes on
    where it was. What it costs is shown, and kept in the folder.

    **Examples**

        corral quantize llama-3.2-1b-instruct ./llama-gptq --method gptq --calibration chats.jsonl
        corral quantize llama-3.2-1b-instruct ./llama-awq --method awq --group-size 64 --calibration book.txt
        corral quantize llama-3.1-8b-instruct ./llama-fp8 --method fp8 --preset meta
        corral quantize smollm2-135m-instruct ./smollm2-nf4 --method rtn --format bitsandbytes
        corral quantize ./my-tune ./my-tune.gguf --method awq --format gguf --calibration rows.jsonl
    """
    from corral.cli.count_progress import CountReport
    from corral.quantizer.run import QuantizeOptions
    from corral.quantizer.run import quantize as run

    recipe, sources = numbers.recipe(), text.sources()
    with CountReport() as report:
        result = run(model, out, recipe, sources, QuantizeOptions(**vars(running)), report, report.count)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    Console(highlight=False).print(_table(result, out))


def _table(result: QuantizeResult, out: Path) -> Table:
    from rich.table import Table
    from rich.text import Text

    from corral.quantizer.card import calibration, numbers

    table = Table(title=Text(str(out)))
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how")
    before, after = result.num_bytes
    table.add_row(
        "size", f"{after / 1e6:,.1f} MB", f"{before / 1e6:,.1f} MB in bfloat16; {numbers(result.recipe)}"
    )
    perplexities = result.perplexities
    if perplexities is not None:
        how = f"over {perplexities.tokens:,} tokens, weights alone"
        table.add_row("perplexity before", f"{perplexities.before:.4f}", how)
        table.add_row("perplexity after", f"{perplexities.after:.4f}", "")
    table.add_row("mean error", f"{result.mean_error:.3%}", f"of the {result.measured_on} of a matrix")
    if result.mean_rtn_error is not None:
        table.add_row("  rounded to nearest", f"{result.mean_rtn_error:.3%}", "what rtn would give")
    worst = max((m.error, i, m.name) for i, layer in enumerate(result.layers) for m in layer.matrices)
    table.add_row("largest error", f"{worst[0]:.3%}", f"layer {worst[1]}, {worst[2]}")
    table.add_row("calibration", "", Text(calibration(result)))
    return table
