"""Runs a file of prompts through an engine, into a file of results."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corral.cli.prompt_file import PromptFile, PromptFileError, Row
from corral.cli.result_file import ResultFile
from corral.engine.batches import try_each
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import CorralError

if TYPE_CHECKING:
    from corral.cli.progress import RowProgress
    from corral.engine.outputs import CompletionOutput, LogprobsByToken, RequestOutput
    from corral.engine.request import Request
    from corral.llm import LLM


def run_rows(
    llm: LLM,
    params: SamplingParams,
    prompts: PromptFile,
    results: ResultFile,
    progress: RowProgress,
    adapter: str | None = None,
) -> None:
    """Adds the results that are still missing, in the order of the rows. Rows run together.

    A row that is refused or fails gives an error, and the others go on.
    """
    running: deque[Row] = deque()

    def requests() -> Iterator[Request | CorralError]:
        for row in prompts.rows(results.num_rows):
            running.append(row)
            try:
                yield row.request(llm, params, adapter)
            except CorralError as error:
                yield error

    for outcome in try_each(llm.engine, requests(), llm.tokenizer):
        label = running.popleft().label
        result = outcome if isinstance(outcome, CorralError) else outcome.result()
        fields: dict[str, Any] = {"error": str(result)}
        if not isinstance(result, CorralError):
            fields = as_fields(result)
        results.add(label | fields)
        progress.add(fields.get("usage", {}).get("completion_tokens", 0), "error" in fields)


def as_fields(result: RequestOutput) -> dict[str, Any]:
    """The outputs of a row as JSON has them, or the error that ended one of them."""
    for output in result.outputs:
        if output.finish_reason in ("error", "cancelled"):
            return {"error": output.error or f"the output ended with {output.finish_reason}"}
    fields: dict[str, Any] = {"outputs": [_output(output) for output in result.outputs]}
    if result.prompt_logprobs is not None:
        fields["prompt_logprobs"] = [None if at is None else _logprobs(at) for at in result.prompt_logprobs]
    return fields | {"usage": _usage(result)}


def begun_with(prompts: PromptFile, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the results depend on, for `ResultFile`."""
    plain = {name: _plain(value) for name, value in settings.items()}
    return {"input": prompts.sha256} | {name: value for name, value in plain.items() if value is not None}


def check_apart(source: Path, target: Path) -> None:
    """Refuses to write results over the prompts.

    Raises:
        PromptFileError: both are the same file.
    """
    if source.exists() and target.exists() and source.samefile(target):
        raise PromptFileError(f"--input and --output are both {source}; the results need a file of their own")


def _output(output: CompletionOutput) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs is not None:
        fields["logprobs"] = [_logprobs(at) for at in output.logprobs]
        fields["cumulative_logprob"] = _finite(output.cumulative_logprob)
    return fields


def _logprobs(at: LogprobsByToken) -> dict[str, Any]:
    """By token id, the token's own first."""
    return {
        str(token_id): {"logprob": _finite(p.logprob), "rank": p.rank, "decoded_token": p.decoded_token}
        for token_id, p in at.items()
    }


def _usage(result: RequestOutput) -> dict[str, int]:
    used = [output.usage for output in result.outputs if output.usage is not None]
    usage = {
        "prompt_tokens": len(result.prompt_token_ids),
        "cached_tokens": result.num_cached_tokens,
        "completion_tokens": sum(len(output.token_ids) for output in result.outputs),
    }
    drafted = sum(one.draft_tokens for one in used)
    if drafted:
        usage |= {"draft_tokens": drafted, "accepted_tokens": sum(one.accepted_tokens for one in used)}
    return usage


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, StructuredOutputsParams):
        return {name: form for name, form in asdict(value).items() if form is not None}
    return value
