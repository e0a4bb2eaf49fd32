"""Corral itself, run as its peers are: in a process of its own, timed by the same clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Load, Peer, Prompt, Running


class Corral:
    def __init__(self, load: Load) -> None:
        import torch

        torch.set_num_threads(load.threads)
        from corral import LLM

        self.llm = LLM(load.model, max_model_len=load.context, max_num_seqs=load.slots)

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        (trace,) = self._run([prompt], new_tokens)
        return [at for at, count in trace.arrivals for _ in range(count)]

    def many(self, prompts: Sequence[Prompt], new_tokens: int) -> int:
        return sum(trace.num_tokens for trace in self._run(prompts, new_tokens))

    def _run(self, prompts: Sequence[Prompt], new_tokens: int) -> list[Any]:
        from corral.bench.measure import run_closed_loop
        from corral.bench.workload import Workload

        workload = Workload(len(prompts[0]), new_tokens)
        requests = [workload.request(tuple(prompt)) for prompt in prompts]
        return run_closed_loop(self.llm.engine, requests, len(requests))

    def close(self) -> None:
        self.llm.close()


def load(load: Load) -> Running:
    return Corral(load)


PEER = Peer(
    name="corral",
    package="corral",
    version="",
    installs=(),
    load=load,
    models={"same": "gguf", "best": "gguf-q4_0", "8b": "8b-q4_0"},
    many=True,
)
