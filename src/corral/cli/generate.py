"""`corral generate`: continue a text, without any chat format; or many prompts from a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import options
from corral.cli.generate_options import Form, Further
from corral.errors import EngineError, RequestError

if TYPE_CHECKING:
    from corral.cli.prompt_file import PromptFile
    from corral.cli.result_file import ResultFile
    from corral.engine.outputs import CompletionOutput
    from corral.engine.sampling.params import SamplingParams
    from corral.llm import LLM

_FILE = "Many prompts"

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text to continue; standard input without it."),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Short name, Hub name, folder, or .gguf file.")
]
Input = Annotated[
    Path | None, typer.Option("--input", "-i", help="Prompts, one JSON object a line.", rich_help_panel=_FILE)
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where the results go.", rich_help_panel=_FILE)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output that exists.", rich_help_panel=_FILE)
]


@dataclass(frozen=True)
class Job:
    """What the flags say, apart from the prompts."""

    model: str
    given: dict[str, Any]
    running: options.Running
    adapter: Path | None
    engine: dict[str, Any]
    prompt_format: str | None

    def load(self, *, for_chat: bool = False) -> LLM:
        """The model."""
        return options.load(
            self.model,
            self.running,
            adapter=self.adapter,
            prompt_format=self.prompt_format,
            for_chat=for_chat,
            **self.engine,
        )

    @property
    def adapter_name(self) -> str | None:
        """The adapter as requests name it."""
        return None if self.adapter is None else options.ADAPTER

    def settings(self) -> dict[str, Any]:
        """What the results depend on: not how tokens are guessed, nor how many rows or threads run."""
        running = {n: value for n, value in vars(self.running).items() if n not in ("speculate", "threads")}
        of_model = {"model": self.model, "prompt_format": self.prompt_format, "adapter": self.adapter}
        return {**of_model, **running, **self.given}


@options.grouped
def generate(
    prompt: Prompt = None,
    model: ModelOption = options.DEFAULT,
    input_file: Input = None,
    output_file: Output = None,
    overwrite: Overwrite = False,
    max_tokens: options.MaxTokens = 256,
    choosing: options.Choosing = options.Choosing(),
    further: Further = Further(),
    form: Form = Form(),
    running: options.Running = options.Running(),
    adapter: options.Adapter = None,
    max_num_seqs: options.MaxNumSeqs = None,
    kv_cache_memory: options.KVMemory = None,
    prompt_format: options.PromptFormat = None,
) -> None:
    """Continue a text as it stands, without a chat format; or many prompts from a file.

    The prompt is written first, then what the model adds. A file has one JSON object a line: {"prompt": text}
    or {"prompt_token_ids": [...]}, or {"messages": [...]} for a dialog; with "id" and sampling
    fields if need be. Interrupted, the same command goes on where it was.

    **Examples**

        corral generate "The capital of France is" --max-tokens 20
        corral generate --model llama-3.1-8b --temperature 0.7 --seed 1 < beginning.txt
        corral generate "A person as JSON:" --json-schema person.json
        corral generate --input prompts.jsonl --output out.jsonl
    """
    from corral.engine.sampling.params import SamplingParams

    given = {"max_tokens": max_tokens, **choosing.given(), **further.given(), **form.given()}
    memory = options.parse_size("--kv-cache-memory", kv_cache_memory)
    engine = {"max_num_seqs": max_num_seqs, "kv_cache_memory": memory}
    job = Job(model, given, running, adapter, engine, prompt_format)
    params = replace(SamplingParams(), **given)  # refuses what is wrong before a model is fetched and read
    if input_file is None and output_file is None:
        _refuse({"--overwrite": overwrite, "--prompt-format": prompt_format})
        _generate_one(job, _text(prompt))
    elif input_file is None or output_file is None:
        raise typer.BadParameter("--input and --output go together")
    elif prompt is not None:
        raise typer.BadParameter("give a PROMPT, or prompts with --input", param_hint="PROMPT")
    else:
        _generate_file(job, params, input_file, output_file, overwrite)


def _refuse(given: dict[str, object]) -> None:
    for flag, value in given.items():
        if value:
            raise typer.BadParameter(f"{flag} goes with --input")


def _text(prompt: str | None) -> str:
    """The text to continue."""
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give a text to continue, or pipe one in", param_hint="PROMPT")
        prompt = sys.stdin.read().removesuffix("\n")
    if not prompt:
        raise RequestError("the prompt is empty; give a text to continue")
    return prompt


def _generate_one(job: Job, prompt: str) -> None:
    with job.load() as llm:
        params = replace(llm.default_sampling_params(), **job.given)
        if params.n > 1 or params.logprobs is not None:
            (result,) = llm.generate(prompt, params, use_tqdm=False, adapter=job.adapter_name)
            for output in result.outputs:
                _show(prompt, output, params)
            return
        deltas = llm.stream(prompt, params, adapter=job.adapter_name)
        sys.stdout.write(prompt)
        for delta in deltas:
            sys.stdout.write(delta.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def _show(prompt: str, output: CompletionOutput, params: SamplingParams) -> None:
    """One of several outputs, and its log-probabilities if they were asked for."""
    if output.error is not None:
        raise EngineError(output.error)
    if params.n > 1:
        sys.stdout.write(f"--- {output.index + 1} of {params.n} ---\n")
    sys.stdout.write(f"{prompt}{output.text}\n")
    if output.logprobs is None:
        return
    sys.stdout.write("\nlog-probability of each token, its rank, and the most likely ones:\n")
    for token_id, at in zip(output.token_ids, output.logprobs, strict=True):
        own, *best = [at[token_id], *(p for other, p in at.items() if other != token_id)]
        others = "".join(f"  {p.decoded_token!r} {p.logprob:.4f}" for p in best)
        sys.stdout.write(f"{own.logprob:10.4f}  #{own.rank}  {own.decoded_token!r}{others}\n")


def _generate_file(job: Job, params: SamplingParams, source: Path, target: Path, overwrite: bool) -> None:
    from corral.cli.generate_file import begun_with, check_apart
    from corral.cli.prompt_file import PromptFile, PromptFileError
    from corral.cli.result_file import ResultFile

    check_apart(source, target)
    prompts = PromptFile.check(source.expanduser(), params)
    with ResultFile(target, begun_with(prompts, job.settings()), overwrite=overwrite) as results:
        if results.num_rows < prompts.num_rows:
            try:
                _run_rows(job, prompts, results)
            except KeyboardInterrupt:
                kept = f"{results.num_rows} of {prompts.num_rows} rows are kept in {results.partial}"
                typer.echo(f"\n{kept}; the same command goes on from there", err=True)
                raise
        results.finish()
    if results.num_failed:
        raise PromptFileError(
            f'{results.num_failed} of {prompts.num_rows} rows failed; their "error" in {target} says why'
        )
    typer.echo(f"{prompts.num_rows} rows are in {target}", err=True)


def _run_rows(job: Job, prompts: PromptFile, results: ResultFile) -> None:
    from corral.cli.generate_file import run_rows
    from corral.cli.progress import RowProgress

    with (
        job.load(for_chat=prompts.has_dialogs) as llm,
        RowProgress(results.num_rows, prompts.num_rows) as progress,
    ):
        params = replace(llm.default_sampling_params(), **job.given)
        run_rows(llm, params, prompts, results, progress, job.adapter_name)
