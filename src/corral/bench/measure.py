"""Runs a workload on an engine and keeps the time of every token."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from corral.bench.workload import Workload
from corral.engine.engine import Engine
from corral.engine.events import Failed, Finished, Tokens
from corral.engine.request import Request
from corral.errors import EngineError, RequestError

_SINGLE_RUNS = 3
_WARM_UP_TOKENS = 4

Percentiles = dict[str, float]


@dataclass
class Trace:
    """One request: when it was submitted, and when how many tokens of it came, in seconds."""

    submitted: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    accepted_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def seconds_to_first(self) -> float:
        return self.arrivals[0][0] - self.submitted

    @property
    def seconds_after_first(self) -> float:
        return self.arrivals[-1][0] - self.arrivals[0][0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens. Tokens that came together share the wait for them."""
        times = [at for at, _ in self.arrivals]
        pairs = zip(times, self.arrivals[1:], strict=False)
        return [(at - before) / count for before, (at, count) in pairs for _ in range(count)]


@dataclass(frozen=True)
class SingleRequest:
    """One request with the engine to itself: medians over several.

    `prefill_tok_s` is the prompt's tokens over the time to the first token; `decode_tok_s` is of the tokens
    after it. `tokens_per_step` is more than 1 where guessed tokens were accepted.
    """

    prefill_tok_s: float
    decode_tok_s: float
    tokens_per_step: float


@dataclass(frozen=True)
class ManyRequests:
    """The whole workload: its speed, the time to the first token, and the time between tokens."""

    output_tok_s: float
    seconds: float
    ttft_ms: Percentiles
    itl_ms: Percentiles


def warm_up(engine: Engine, workload: Workload, vocab_size: int) -> None:
    """Lets everything happen that happens only once: a whole prompt, and a batch as wide as it will be.

    Raises:
        RequestError: the engine has no room for a request of the workload.
    """
    if workload.length > engine.max_model_len:
        raise RequestError(
            f"prompt_tokens and new_tokens come to {workload.length}, but there is memory for a context of "
            f"{engine.max_model_len}"
        )
    short = replace(
        workload,
        prompt_tokens=min(workload.prompt_tokens, 32),
        new_tokens=_WARM_UP_TOKENS,
        seed=workload.seed + 1,
    )
    prompts = islice(short.prompts(vocab_size), workload.concurrency)
    run_closed_loop(engine, [short.request(prompt) for prompt in prompts], workload.concurrency)
    prompt = next(replace(workload, seed=workload.seed + 2).prompts(vocab_size))
    run_closed_loop(engine, [workload.request(prompt, _WARM_UP_TOKENS)], 1)


def measure_single(engine: Engine, workload: Workload, vocab_size: int) -> SingleRequest:
    """Runs requests one after the other."""
    alone = replace(workload, seed=workload.seed + 3)
    prompts = islice(alone.prompts(vocab_size), _SINGLE_RUNS)
    traces = run_closed_loop(engine, [alone.request(prompt) for prompt in prompts], 1)
    median = statistics.median
    return SingleRequest(
        median(workload.prompt_tokens / trace.seconds_to_first for trace in traces),
        median((trace.num_tokens - 1) / trace.seconds_after_first for trace in traces),
        median(trace.num_tokens / (trace.num_tokens - trace.accepted_tokens) for trace in traces),
    )


def measure_many(engine: Engine, workload: Workload, vocab_size: int) -> ManyRequests:
    """Runs the workload in a closed loop: as one request ends, the next is submitted."""
    prompts = islice(workload.prompts(vocab_size), workload.requests)
    requests = [workload.request(prompt) for prompt in prompts]
    begun = time.perf_counter()
    traces = run_closed_loop(engine, requests, workload.concurrency)
    seconds = time.perf_counter() - begun
    return ManyRequests(
        output_tok_s=sum(trace.num_tokens for trace in traces) / seconds,
        seconds=seconds,
        ttft_ms=_percentiles([trace.seconds_to_first for trace in traces]),
        itl_ms=_percentiles([gap for trace in traces for gap in trace.gaps]),
    )


def run_closed_loop(engine: Engine, requests: Iterable[Request], concurrency: int) -> list[Trace]:
    """Runs requests, `concurrency` at a time, and gives what came of them, in no order.

    Raises:
        CorralError: a request failed.
    """
    return asyncio.run(_closed_loop(engine, requests, concurrency))


async def _closed_loop(engine: Engine, requests: Iterable[Request], concurrency: int) -> list[Trace]:
    coming = iter(requests)

    async def work() -> list[Trace]:
        return [await _trace(engine, request) for request in coming]

    tasks = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        return [trace for traces in await asyncio.gather(*tasks) for trace in traces]
    finally:
        for task in tasks:
            task.cancel()


async def _trace(engine: Engine, request: Request) -> Trace:
    trace = Trace(time.perf_counter())
    handle = engine.submit(request)
    try:
        async for event in handle:
            match event:
                case Tokens():
                    trace.arrivals.append((time.perf_counter(), len(event.token_ids)))
                case Finished():
                    trace.accepted_tokens = event.usage.accepted_tokens
                    if event.reason != "length":
                        raise EngineError(f"a request ended early: {event.message or event.reason}")
                case Failed():
                    raise event.error
    finally:
        handle.cancel()
    return trace


def _percentiles(seconds: list[float]) -> Percentiles:
    """In milliseconds."""
    found = np.percentile(np.array(seconds) * 1e3, (50, 95, 99))
    return {name: float(value) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}
