"""OpenVINO GenAI: the GGUF file as it is, and its own 4-bit format, made by nncf from the same weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .base import Load, Peer, Prompt, Running


class OpenVINO:
    def __init__(self, load: Load) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.numpy: Any = numpy
        self.openvino: Any = openvino
        self.genai: Any = openvino_genai
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": load.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.pipe = openvino_genai.LLMPipeline(load.model, "CPU", **options)

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        clock = _clock(self.genai)
        self._generate([prompt], new_tokens, clock)
        times: list[float] = clock.times
        return times

    def many(self, prompts: Sequence[Prompt], new_tokens: int) -> int:
        self._generate(prompts, new_tokens, None)
        return len(prompts) * new_tokens

    def _generate(self, prompts: Sequence[Prompt], new_tokens: int, streamer: Any) -> None:
        ids = self.numpy.array(prompts, dtype=self.numpy.int64)
        tokens = self.genai.TokenizedInputs(
            self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids))
        )
        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        found = (
            self.pipe.generate(tokens, config, streamer) if streamer else self.pipe.generate(tokens, config)
        )
        assert all(len(row) == new_tokens for row in found.tokens)


def _clock(genai: Any) -> Any:
    class Clock(genai.StreamerBase):  # type: ignore[misc]
        """Keeps the time of each new token."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def write(self, tokens: int | list[int]) -> Any:
            count = 1 if isinstance(tokens, int) else len(tokens)
            self.times += [time.perf_counter()] * count
            return genai.StreamingStatus.RUNNING

        def end(self) -> None: ...

    return Clock()


def load(load: Load) -> Running:
    return OpenVINO(load)


PEER = Peer(
    name="openvino",
    package="openvino-genai",
    version="2026.4.1.0",
    installs=(
        ("openvino-genai==2026.4.1.0", "openvino-tokenizers", "optimum-intel==2.2.0", "nncf", "torch"),
    ),
    load=load,
    models={"same": "gguf", "best": "openvino-int4"},
    many=True,
    removes=("torchvision",),
)
