"""`corral generate`: continue a text, without any chat format."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from corral.cli import options
from corral.errors import RequestError


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text to continue; standard input without it."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Short name, Hub name, folder, or .gguf file.")
    ] = options.DEFAULT,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    context: options.Context = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Continue a text as it stands, without a chat format.

    The prompt is written first, then what the model adds.

    **Examples**

        corral generate "The capital of France is" --max-tokens 20
        corral generate --model llama-3.1-8b --temperature 0.7 --seed 1 < beginning.txt
    """
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give a text to continue, or pipe one in", param_hint="PROMPT")
        prompt = sys.stdin.read().removesuffix("\n")
    if not prompt:
        raise RequestError("the prompt is empty; give a text to continue")
    llm = options.load(model, dtype=dtype, device=device, context=context)
    params = options.sampling(
        llm.default_sampling_params(),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    deltas = llm.stream(prompt, params)
    sys.stdout.write(prompt)
    for delta in deltas:
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
