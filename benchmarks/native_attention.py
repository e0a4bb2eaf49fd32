"""Attention kernels of the native library on one core: long decodes in GB/s of the cache read, prompts in ms.

    taskset -c 1 python benchmarks/native_attention.py [--isa avx2]

Times are the least processor time of several runs, for all layers of the model's shape: each layer has keys
and values of its own, so that they come from memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.kernels.attention_calls import Cache, Kernels, instruction_sets

SHAPES = {
    "SmolLM2-135M": (9, 3, 64, 30),
    "Llama-8B": (32, 8, 128, 32),
}  # query heads, key-value heads, head_dim, layers
KINDS = ("bfloat16 pairs", "bfloat16", "int8", "float32", "float16")
BLOCK = 32


def random_cache(kind: str, kv_heads: int, positions: int, head_dim: int) -> Cache:
    name, _, pairs = kind.partition(" ")
    cache = Cache.zeros(name, kv_heads, positions, head_dim, BLOCK)
    cache.pairs = bool(pairs)
    if cache.scales is None:
        cache.data.copy_(torch.randn(cache.data.shape))
    else:
        cache.data.random_(-127, 128)
        cache.scales.fill_(0.02)
    return cache


def least(run: Callable[[], None], repeats: int) -> float:
    """Processor seconds of the fastest run: what others do on the machine counts less."""
    times = []
    for _ in range(repeats):
        before = time.thread_time()
        run()
        times.append(time.thread_time() - before)
    return min(times)


def step(kernels: Kernels, caches: list[Cache], blocks: torch.Tensor, q: torch.Tensor, start: int) -> None:
    """Attention of q over each of the caches."""
    for cache in caches:
        kernels.attention(cache, blocks, q, start)


def rows(kernels: Kernels, repeats: int) -> Iterator[str]:
    for name, (q_heads, kv_heads, head_dim, layers) in SHAPES.items():
        for kind in KINDS[not kernels.reads_pairs :]:
            layers_here = min(layers, 12)  # as many as outgrow the caches
            caches = [random_cache(kind, kv_heads, 8192, head_dim) for _ in range(layers_here)]
            nbytes = sum(cache.data.nbytes for cache in caches)
            blocks = torch.randperm(8192 // BLOCK)

            q = torch.randn(1, q_heads, head_dim)
            seconds = least(partial(step, kernels, caches, blocks, q, 8191), repeats)
            all_layers = layers / layers_here
            yield (
                f"{kernels.isa:11} {name:13} {kind:14} decode at 8192: {seconds * all_layers * 1e3:8.2f} ms "
                f"{nbytes / seconds / 1e9:6.1f} GB/s"
            )
            for count, start in ((512, 0), (512, 7680)):
                q = torch.randn(count, q_heads, head_dim)
                prompt = partial(step, kernels, caches[:3], blocks, q, start)
                seconds = least(prompt, max(1, repeats // 3))
                yield (
                    f"{kernels.isa:11} {name:13} {kind:14} {count} rows at {start:4}: "
                    f"{seconds / 3 * layers * 1e3:8.1f} ms"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", choices=instruction_sets(), action="append")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    for isa in options.isa or instruction_sets()[:1]:
        for line in rows(Kernels(isa), options.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
