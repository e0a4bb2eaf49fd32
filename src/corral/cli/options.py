"""Options that several verbs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from corral.model.presets import DEFAULT_MODEL

if TYPE_CHECKING:
    from corral.engine.sampling import SamplingParams
    from corral.llm import LLM

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Short name, Hub name (org/name[@revision]), folder, or .gguf file."
    ),
]
RequiredModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Short name, Hub name (org/name[@revision]), folder, or .gguf file."
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Context = Annotated[
    int | None, typer.Option(help="Longest context in tokens; the model's by default.", show_default=False)
]
PromptFormat = Annotated[
    str | None,
    typer.Option(help="Overrides the checkpoint's prompt format, such as llama-3.1.", show_default=False),
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.", show_default=False)]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; the model's default otherwise.", show_default=False)
]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling.", show_default=False)]
TopK = Annotated[int | None, typer.Option(help="Keep the k best tokens; 0 keeps all.", show_default=False)]
MinP = Annotated[
    float | None, typer.Option(help="Least share of the best token's probability.", show_default=False)
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 discourages repetition.", show_default=False)
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.", show_default=False)]

DEFAULT = DEFAULT_MODEL


def load(
    model: str,
    *,
    dtype: str,
    device: str,
    context: int | None,
    prompt_format: str | None = None,
    for_chat: bool = False,
) -> LLM:
    """Loads a model, showing downloads on standard error."""
    from corral.cli.progress import TerminalReport
    from corral.llm import LLM

    with TerminalReport() as report:
        return LLM(
            model,
            dtype=dtype,
            device=device,
            max_model_len=context,
            prompt_format=prompt_format,
            for_chat=for_chat,
            report=report,
        )


def sampling(defaults: SamplingParams, **changes: object) -> SamplingParams:
    """The model's defaults with the options that were given."""
    from dataclasses import replace

    return replace(defaults, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
