"""llama.cpp, through llama-cpp-python's bindings of its C interface, built here for this very processor."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

from .base import Load, Peer, Prompt, Running


class LlamaCpp:
    """Drives llama.cpp's C functions directly: the greedy sampler is its own, and no Python runs per layer or
    per logit."""

    def __init__(self, load: Load) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            load.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp does not load {load.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = load.context * load.slots
        params.n_seq_max = load.slots
        params.n_batch = 2048
        params.n_threads = params.n_threads_batch = load.threads
        params.no_perf = True
        self.model, self.context = model, llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        self._forget()
        times = []
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        for start in range(0, len(prompt), 2048):
            piece = ctypes.cast(ctypes.byref(tokens, 4 * start), ctypes.POINTER(ctypes.c_int32))
            self._decode(self.lib.llama_batch_get_one(piece, min(2048, len(prompt) - start)))
        for number in range(new_tokens):
            token = self.lib.llama_sampler_sample(self.sampler, self.context, -1)
            times.append(time.perf_counter())
            if number + 1 < new_tokens:
                self._decode(self.lib.llama_batch_get_one((ctypes.c_int32 * 1)(token), 1))
        return times

    def many(self, prompts: Sequence[Prompt], new_tokens: int) -> int:
        """Prompts one after the other, then steps of one token for every sequence."""
        self._forget()
        batch = self.lib.llama_batch_init(2048, 0, 1)
        last = []
        for sequence, prompt in enumerate(prompts):
            batch.n_tokens = len(prompt)
            for at, token in enumerate(prompt):
                self._put(batch, at, token, at, sequence, at + 1 == len(prompt))
            self._decode(batch)
            last.append(self.lib.llama_sampler_sample(self.sampler, self.context, -1))
        batch.n_tokens = len(prompts)
        for step in range(new_tokens - 1):
            for sequence, token in enumerate(last):
                self._put(batch, sequence, token, len(prompts[sequence]) + step, sequence, True)
            self._decode(batch)
            last = [
                self.lib.llama_sampler_sample(self.sampler, self.context, row) for row in range(len(prompts))
            ]
        self.lib.llama_batch_free(batch)
        return len(prompts) * new_tokens

    @staticmethod
    def _put(batch: Any, at: int, token: int, position: int, sequence: int, wanted: bool) -> None:
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = wanted

    def _decode(self, batch: Any) -> None:
        if status := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gives {status}")

    def _forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)


def load(load: Load) -> Running:
    return LlamaCpp(load)


PEER = Peer(
    name="llama.cpp",
    package="llama-cpp-python",
    version="0.3.36",
    # Built here, with the instructions of this processor; without the multimodal part.
    installs=(("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),),
    environ={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_APP=OFF"},
    load=load,
    models={"same": "gguf", "best": "gguf-q4_0", "8b": "8b-q4_0"},
    many=True,
)
