"""`corral bench`: how fast a model runs here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import options

if TYPE_CHECKING:
    from rich.table import Table

PromptTokens = Annotated[int, typer.Option(help="Tokens of each prompt.")]
NewTokens = Annotated[int, typer.Option(help="Tokens that each request gives.")]
Concurrency = Annotated[int, typer.Option(help="Requests in flight at any time.")]
Requests = Annotated[
    int | None, typer.Option(help="Requests in all. Default: twice the concurrency, at least 8.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Make weights up: a short name is enough, no file is read.")
]
Seed = Annotated[int, typer.Option(help="Chooses the prompts.")]
Weights = Annotated[
    str, typer.Option(help="Random weights as q4_0 or q8_0: packed for the native kernels; auto: as --dtype.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@options.grouped
def bench(
    model: options.Model = options.DEFAULT,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 128,
    concurrency: Concurrency = 1,
    requests: Requests = None,
    random_weights: RandomWeights = False,
    weights: Weights = "auto",
    seed: Seed = 0,
    running: options.Running = options.Running(),
    max_num_seqs: options.MaxNumSeqs = None,
    kv_cache_memory: options.KVMemory = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model runs: prefill, decoding, latency, memory, and its share of the bandwidth.

    First one request has the engine to itself, then so many run at once. Prompts are random.

    **Examples**

        corral bench
        corral bench llama-3.2-1b --random-weights --concurrency 8 --dtype bfloat16
        corral bench llama-3.1-8b --random-weights --weights q4_0
        corral bench ./my-model --prompt-tokens 2048 --new-tokens 256 --json
    """
    from corral.bench.run import Setup, run_bench
    from corral.bench.workload import Workload
    from corral.cli.progress import TerminalReport

    count = max(2 * concurrency, 8) if requests is None else requests
    workload = Workload(prompt_tokens, new_tokens, concurrency, count, seed)
    engine = {
        **running.engine_options(),
        "max_num_seqs": max(concurrency, 64) if max_num_seqs is None else max_num_seqs,
        "kv_cache_memory": options.parse_size("--kv-cache-memory", kv_cache_memory),
    }
    given = {name: value for name, value in engine.items() if value is not None}
    setup = Setup(model, running.dtype, running.device, random_weights, weights, given)
    with TerminalReport() as report:
        result = run_bench(setup, workload, report).to_dict()
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console

    Console(highlight=False).print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    settings = result["settings"]
    kind = result["dtype"] if result["weights"] == result["dtype"] else f"{result['weights']} weights"
    table = Table(
        title=f"{result['model']}, {kind}, {result['device']}, {result['kernels']} kernels, "
        f"{result['threads']} threads"
    )
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how")
    loop = f"{settings['requests']} requests, {settings['concurrency']} at once"
    one = f"one request, {settings['prompt_tokens']} + {settings['new_tokens']} tokens"
    table.add_row("prefill", f"{result['prefill_tok_s']:,.1f} tok/s", one)
    table.add_row("decode", f"{result['decode_tok_s']:,.1f} tok/s", "one request, after its first token")
    table.add_row("output", f"{result['output_tok_s']:,.1f} tok/s", f"{loop}, prefill and all")
    for name, what in (("ttft_ms", "time to first token"), ("itl_ms", "time between tokens")):
        values = " / ".join(f"{result[name][p]:,.1f}" for p in ("p50", "p95", "p99"))
        table.add_row(what, f"{values} ms", f"p50 / p95 / p99, {loop}")
    table.add_row("peak memory", _gib(result["peak_rss_bytes"]), "of this process")
    if result["peak_device_bytes"] is not None:
        table.add_row("peak device memory", _gib(result["peak_device_bytes"]), "torch's tensors")
    best = f"{result['read_bandwidth_gb_s']:,.1f} GB/s, the fastest plain read"
    share = f"{result['bandwidth_share']:.0%} of {best}"
    table.add_row("bandwidth", f"{result['bandwidth_gb_s']:,.1f} GB/s", share)
    return table


def _gib(amount: int) -> str:
    return f"{amount / 2**30:,.2f} GiB"
