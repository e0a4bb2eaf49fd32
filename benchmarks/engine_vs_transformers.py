"""The engine beside transformers' `generate`: the same weights and prompts, the same process, in turn.

    python benchmarks/engine_vs_transformers.py [--model MODEL] [--dtype bfloat16] [--rounds 3] [--quick]

For each concurrency, Corral's engine gets so many requests at once, and transformers one batch of them. All
prompts have the same length, so that no padding is computed in vain, and both are greedy and give the same
number of tokens. A second table has one request alone: its prompt, and the tokens after the first one.

Prints medians over the rounds, in output tokens per second, and the ratio Corral / transformers; above 1
Corral is faster. Run it on an idle machine. `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from corral.bench.workload import Workload
from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_model
from corral.devices import pick_device, pick_dtype
from corral.engine.batches import run_each
from corral.engine.build import build_engine
from corral.engine.engine import Engine
from corral.engine.options import EngineOptions
from corral.model.llama import Llama
from corral.model.presets import DEFAULT_MODEL

Prompts = list[tuple[int, ...]]
Side = Callable[[Prompts, int], None]


def main() -> None:
    options = parse()
    device = pick_device(options.device)
    model = load_model(open_model(options.model), pick_dtype(options.dtype, device), device)
    longest = max(options.prompt_tokens + options.new_tokens, options.single[0] + options.single[1])
    limits = EngineOptions(max_model_len=longest, max_num_seqs=max(options.concurrency))
    engine = build_engine(model, None, limits)
    sides = {"corral": corral_side(engine), "transformers": transformers_side(peer_of(model), device)}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.machine()}, {device.type}, {torch.get_num_threads()} threads, {versions}")
    print(f"{options.model}, {model.dtype}, medians of {options.rounds} rounds\n")
    try:
        compare_batches(sides, model.config.vocab_size, options)
        compare_single(sides, model.config.vocab_size, options)
    finally:
        engine.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--single", type=int, nargs=2, default=[512, 128], metavar=("PROMPT", "NEW"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a few tokens, one round")
    options = parser.parse_args()
    if options.quick:
        options.concurrency, options.rounds = [1, 4], 1
        options.prompt_tokens, options.new_tokens, options.single = 32, 8, [32, 8]
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def peer_of(model: Llama) -> Any:
    """transformers' network on the very same weights."""
    with torch.device("meta"):
        peer = LlamaForCausalLM(LlamaConfig(**model.config.to_hf()))
    peer.to_empty(device=model.device)
    peer.load_state_dict(model.state_dict(), assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config).to(model.device)
    peer.generation_config.eos_token_id = None
    return peer.eval()


def corral_side(engine: Engine) -> Side:
    def run(prompts: Prompts, new_tokens: int) -> None:
        workload = Workload(len(prompts[0]), max(new_tokens, 2))
        requests = [workload.request(prompt, new_tokens) for prompt in prompts]
        for done in run_each(engine, requests, None):
            assert len(done.result().outputs[0].token_ids) == new_tokens

    return run


def transformers_side(peer: Any, device: torch.device) -> Side:
    def run(prompts: Prompts, new_tokens: int) -> None:
        ids = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            output = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=0,
            )
        assert output.shape == (len(prompts), len(prompts[0]) + new_tokens)

    return run


def compare_batches(sides: dict[str, Side], vocab_size: int, options: argparse.Namespace) -> None:
    """Whole runs, prefill and all."""
    prompt_tokens, new_tokens = options.prompt_tokens, options.new_tokens
    print(f"{prompt_tokens} prompt tokens and {new_tokens} new ones for each request, output tok/s:\n")
    header("concurrency")
    fresh = Workload(prompt_tokens, seed=1).prompts(vocab_size)
    for concurrency in options.concurrency:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds + 1):  # the first one warms up
            prompts = list(islice(fresh, concurrency))
            for name, run in sides.items():
                seconds[name].append(timed(run, prompts, new_tokens))
        speeds = {name: [concurrency * new_tokens / s for s in all_[1:]] for name, all_ in seconds.items()}
        row(str(concurrency), speeds)
    print()


def compare_single(sides: dict[str, Side], vocab_size: int, options: argparse.Namespace) -> None:
    """One request, taken apart by a run of one new token and a run of many."""
    prompt_tokens, new_tokens = options.single
    print(f"One request of {prompt_tokens} prompt tokens and {new_tokens} new ones, tok/s:\n")
    header("phase")
    prefill: dict[str, list[float]] = {name: [] for name in sides}
    decode: dict[str, list[float]] = {name: [] for name in sides}
    fresh = Workload(prompt_tokens, seed=2).prompts(vocab_size)
    for number in range(options.rounds + 1):
        one, other = list(islice(fresh, 2))
        for name, run in sides.items():
            first = timed(run, [one], 1)
            rest = timed(run, [other], new_tokens) - first
            if number > 0:
                prefill[name].append(prompt_tokens / first)
                decode[name].append((new_tokens - 1) / max(rest, 1e-9))
    row("prefill", prefill)
    row("decode", decode)


def timed(run: Side, prompts: Prompts, new_tokens: int) -> float:
    begun = time.perf_counter()
    run(prompts, new_tokens)
    return time.perf_counter() - begun


def header(what: str) -> None:
    print(f"| {what} | corral | transformers | ratio |")
    print("| --- | ---: | ---: | ---: |")


def row(label: str, speeds: dict[str, list[float]]) -> None:
    mine, others = speeds["corral"], speeds["transformers"]
    ratio = statistics.median(a / b for a, b in zip(mine, others, strict=True))
    medians = f"{statistics.median(mine):.1f} | {statistics.median(others):.1f}"
    print(f"| {label} | {medians} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
