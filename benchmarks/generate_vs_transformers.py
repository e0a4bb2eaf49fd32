"""Prefill and decode of one request beside transformers: the same weights, the same process, in turn.

    python benchmarks/generate_vs_transformers.py [--model MODEL] [--dtype bfloat16] [--rounds 5]

Prints medians and the ratio Corral / transformers; above 1 Corral is faster. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import corral
from corral.engine.generate import generate
from corral.engine.sampling import SamplingParams
from corral.model.presets import DEFAULT_MODEL

PROMPT_TOKENS, NEW_TOKENS = 512, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    llm = corral.LLM(options.model, dtype=options.dtype)
    with torch.device("meta"):
        peer = LlamaForCausalLM(LlamaConfig(**llm.config.to_hf()))
    peer.to_empty(device=llm.model.device)
    peer.load_state_dict(llm.model.state_dict(), assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config)
    peer.generation_config.eos_token_id = None
    prompt = [i % 1000 + 100 for i in range(PROMPT_TOKENS)]

    def ours(new_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        list(generate(llm.model, prompt, params, frozenset(), llm.max_model_len))

    def theirs(new_tokens: int) -> None:
        ids = torch.tensor([prompt], device=llm.model.device)
        mask = torch.ones_like(ids)
        peer.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens)

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{options.model}, {llm.model.dtype}, prompt {PROMPT_TOKENS}, new tokens {NEW_TOKENS}")
    print(f"{'':10}{'corral':>10}{f'transformers {transformers.__version__}':>22}{'ratio':>8}")
    speeds = [measure(side) for _ in range(options.rounds + 1) for side in (ours, theirs)][2:]
    for row, name in enumerate(("prefill", "decode")):
        mine = [speed[row] for speed in speeds[::2]]
        others = [speed[row] for speed in speeds[1::2]]
        ratio = statistics.median(a / b for a, b in zip(mine, others, strict=True))
        print(f"{name:10}{statistics.median(mine):10.1f}{statistics.median(others):22.1f}{ratio:8.2f}  tok/s")


def measure(run: Callable[[int], None]) -> tuple[float, float]:
    """Tokens per second of prefill and of decode, from a run of one new token and a run of many."""
    start = time.perf_counter()
    run(1)
    first = time.perf_counter()
    run(NEW_TOKENS)
    end = time.perf_counter()
    prefill = first - start
    return PROMPT_TOKENS / prefill, (NEW_TOKENS - 1) / (end - first - prefill)


if __name__ == "__main__":
    main()
