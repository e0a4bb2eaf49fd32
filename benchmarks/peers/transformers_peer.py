"""transformers' `generate`, in bfloat16."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .base import Load, Peer, Prompt, Running


class Clock:
    """A streamer that keeps the time of each new token. `generate` puts the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, _: Any) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None: ...


class Transformers:
    def __init__(self, load: Load) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(load.threads)
        self.torch: Any = torch
        self.model = AutoModelForCausalLM.from_pretrained(load.model, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        clock = Clock()
        self._generate([prompt], new_tokens, clock)
        return clock.times

    def many(self, prompts: Sequence[Prompt], new_tokens: int) -> int:
        """One batch; the prompts are of one length, so nothing is padded."""
        self._generate(prompts, new_tokens, None)
        return len(prompts) * new_tokens

    def _generate(self, prompts: Sequence[Prompt], new_tokens: int, streamer: Clock | None) -> None:
        ids = self.torch.tensor(prompts)
        with self.torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=0,
                streamer=streamer,
            )
        assert found.shape[1] == len(prompts[0]) + new_tokens


def load(load: Load) -> Running:
    return Transformers(load)


PEER = Peer(
    name="transformers",
    package="transformers",
    version="5.23.0",
    installs=(("transformers==5.23.0", "torch"),),
    load=load,
    models={"same": "hf", "best": "hf"},
    many=True,
    run_environ={"HF_HUB_OFFLINE": "1"},
)
