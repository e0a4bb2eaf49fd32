"""ONNX Runtime GenAI, in the 4-bit format that its own model builder makes."""

from __future__ import annotations

import json
import time
from typing import Any

from .base import Load, Peer, Prompt, Running


class OnnxRuntime:
    def __init__(self, load: Load) -> None:
        import onnxruntime_genai

        self.genai: Any = onnxruntime_genai
        config = onnxruntime_genai.Config(load.model)
        session = {"intra_op_num_threads": load.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        params = self.genai.GeneratorParams(self.model)
        length = len(prompt) + new_tokens
        params.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = self.genai.Generator(self.model, params)
        generator.append_tokens(prompt)
        times = []
        for _ in range(new_tokens):
            generator.generate_next_token()
            times.append(time.perf_counter())
        return times


def load(load: Load) -> Running:
    return OnnxRuntime(load)


PEER = Peer(
    name="onnxruntime",
    package="onnxruntime-genai",
    version="0.18.0",
    installs=(("onnxruntime-genai==0.18.0", "onnx", "onnx-ir", "torch", "transformers", "tqdm"),),
    load=load,
    models={"best": "onnx-int4"},
)
