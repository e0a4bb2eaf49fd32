"""What the verbs that evaluate models on a text share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from corral.evals.scorer import ModelSetup
    from corral.evals.statistics import Estimate
    from corral.evals.windows import WindowOptions

_TEXT, _ENGINE = "Text", "Engine"


def in_panel(text: str, panel: str, *names: str) -> Any:
    """An option of `--help`'s panel of that name, whose default its text tells."""
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=panel)


TextFile = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="FILE",
        help="A file of text in UTF-8, of JSON lines or Parquet, or a saved dataset; - is standard input.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Cutting:
    """How the text is read, and cut into windows."""

    context: Annotated[
        int | None, in_panel("Tokens of a window; 1,024 by default, or the model's context.", _TEXT)
    ] = None
    stride: Annotated[
        int | None, in_panel("Tokens from one window to the next; the context by default.", _TEXT)
    ] = None
    tokens: Annotated[int | None, in_panel("Take so many tokens of the text; all by default.", _TEXT)] = None
    jsonl: Annotated[
        bool | None,
        in_panel(
            'Each line is a text of its own, {"text": ...}; by default if the file is named .jsonl.',
            _TEXT,
            "--jsonl/--no-jsonl",
        ),
    ] = None

    def options(self) -> WindowOptions:
        """As the library takes them."""
        from corral.evals.windows import WindowOptions

        return WindowOptions(self.context, self.stride, self.tokens)


@dataclass(frozen=True)
class Computing:
    """Where and how models run."""

    dtype: Annotated[str, in_panel("float32, bfloat16, float16, or auto.", _ENGINE)] = "auto"
    device: Annotated[str, in_panel("cpu, cuda, or auto.", _ENGINE)] = "auto"
    kv_cache_dtype: Annotated[
        str,
        in_panel("float32, bfloat16, float16, int8, or auto: as the weights.", _ENGINE, "--kv-cache-dtype"),
    ] = "auto"
    threads: Annotated[int | None, in_panel("Threads on a CPU; one for each core by default.", _ENGINE)] = (
        None
    )
    kernels: Annotated[str, in_panel("On a CPU: native (Corral's own), torch, or auto.", _ENGINE)] = "auto"
    exact_activations: Annotated[
        bool,
        in_panel(
            "Do not round activations to 8 bits before quantized weights: slower.",
            _ENGINE,
            "--exact-activations",
        ),
    ] = False

    quantize: Annotated[
        str | None,
        in_panel(
            "Make full-precision weights smaller while they are read: int8, int4, nf4, or fp8; of two "
            "models, those of MODEL.",
            _ENGINE,
        ),
    ] = None

    def setup(self, model: str, **changes: Any) -> ModelSetup:
        """A model that runs so, but for what of `changes` is not None."""
        from corral.evals.scorer import ModelSetup

        given = {name: value for name, value in changes.items() if value is not None}
        return ModelSetup(model, **{**vars(self), **given})


def plus_minus(estimate: Estimate, form: str, scale: float = 1.0) -> str:
    """A mean, and its standard error where there is one."""
    mean = format(estimate.mean * scale, form)
    if estimate.standard_error is None:
        return mean
    return f"{mean} ± {format(estimate.standard_error * scale, form)}"
