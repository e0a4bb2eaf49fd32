"""`corral merge`: write a model with adapters in its weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options
from corral.cli.eval_options import in_panel
from corral.cli.quantize import TextOptions
from corral.errors import RequestError

if TYPE_CHECKING:
    from corral.cli.count_progress import CountReport
    from corral.tune.merge import Requantizing

_QUANTIZE = "Quantize the result"


@dataclass(frozen=True)
class Quantizing:
    """What the merged weights become."""

    quantize: Annotated[
        str | None,
        in_panel(
            "Quantize the merged model: rtn, awq, gptq or fp8, as `corral quantize --method`.", _QUANTIZE
        ),
    ] = None
    bits: Annotated[int | None, in_panel("Bits of a weight; 4 by default.", _QUANTIZE)] = None
    group_size: Annotated[
        int | None, in_panel("Columns that share a scale, -1 for a whole row; 128 by default.", _QUANTIZE)
    ] = None
    format: Annotated[
        str | None,
        in_panel("compressed-tensors, awq, gptq, bitsandbytes (nf4), fbgemm_fp8, or gguf.", _QUANTIZE),
    ] = None
    device: Annotated[str, in_panel("cpu, cuda, or auto.", _QUANTIZE)] = "auto"
    threads: Annotated[int | None, in_panel("Threads on a CPU.", _QUANTIZE)] = None

    def requantizing(self, text: TextOptions, report: CountReport) -> Requantizing | None:
        """As the library takes it; None where nothing is quantized.

        Raises:
            RequestError: a setting is for what is not asked for.
        """
        if self.quantize is None:
            for group in (self, text):
                for field in fields(group):
                    if getattr(group, field.name) != field.default:
                        flag = field.name.replace("_", "-")
                        raise RequestError(f"--{flag} goes with --quantize, which is not given")
            return None
        from corral.quantizer.recipe import Recipe
        from corral.quantizer.run import QuantizeOptions
        from corral.tune.merge import Requantizing

        recipe = Recipe.of(self.quantize, bits=self.bits, group_size=self.group_size, format=self.format)
        running = QuantizeOptions(device=self.device, threads=self.threads)
        return Requantizing(recipe, text.sources(), running, report.count)


@options.grouped
def merge(
    model: options.Model,
    adapter: Annotated[list[Path], typer.Argument(metavar="ADAPTER", help="PEFT folders, of LoRA or DoRA.")],
    out: Annotated[
        Path, typer.Option("--out", help="The folder to write; it must not exist yet.", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Where the adapter was trained over quantized weights: dequantized merges onto what these "
            "stand for, original onto the weights in full precision. nf4, int4 or int8 is dequantized, too, "
            "for an adapter from elsewhere that does not say so.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How much of an adapter is added; once for each of several.", show_default=False),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="Of what is written: float32, bfloat16, float16, or auto for the checkpoint's."),
    ] = "auto",
    prompt_format: Annotated[
        str | None,
        typer.Option(
            help="Writes the chat template of this Llama 3 family, such as llama-3.1, in place of the "
            "checkpoint's own.",
            show_default=False,
        ),
    ] = None,
    quantizing: Quantizing = Quantizing(),
    text: TextOptions = TextOptions(),
) -> None:
    """Write a model with adapters merged into its weights, as a Hugging Face folder.

    The folder appears whole or not at all. A model that was trained over quantized weights is merged onto
    these (dequantized) or onto the original ones: they give different models, so it has to be said.

    **Examples**

        corral merge llama-3.2-1b-instruct ./run/adapter --out ./merged
        corral merge llama-3.1-8b-instruct ./qlora --base dequantized --out ./merged
        corral merge llama-3.1-8b-instruct ./style ./facts --weight 0.7 --weight 0.3 --out ./both
        corral merge llama-3.2-1b-instruct ./run/adapter --out ./merged-awq --quantize awq
    """
    from corral.cli.count_progress import CountReport
    from corral.tune.merge import Merging
    from corral.tune.merge import merge as run

    with CountReport() as report:
        requantizing = quantizing.requantizing(text, report)
        how = Merging(base, tuple(weight or ()), dtype, prompt_format)
        run(model, adapter, out, how, requantizing, report)
    typer.echo(out)
