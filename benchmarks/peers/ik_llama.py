"""ik_llama.cpp, a fork of llama.cpp made for CPUs, built here for this very processor.

Weights are repacked when they are loaded, attention is the fork's fused one, and memory is in huge pages
where it can be: what its makers recommend for speed.
"""

from __future__ import annotations

import time
from typing import Any

from .base import Load, Peer, Prompt, Running

_BATCH = 2048


class IkLlama:
    def __init__(self, load: Load) -> None:
        import numpy
        from ik_llama_cpp import _ctypes_api

        self.numpy: Any = numpy
        self.lib: Any = _ctypes_api
        self.lib.llama_backend_init()
        options = self.lib.llama_model_default_params()
        options.use_mmap, options.repack_tensors, options.use_thp = False, True, True
        self.model = self.lib.llama_model_load_from_file(load.model.encode(), options)
        if not self.model:
            raise RuntimeError(f"ik_llama.cpp does not load {load.model}")
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.flash_attn = load.context, _BATCH, True
        params.n_threads = params.n_threads_batch = load.threads
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("ik_llama.cpp makes no context")
        self.vocab_size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.batch = self.lib.llama_batch_init(_BATCH, 0, 1)

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        self.lib.llama_kv_cache_clear(self.context)
        for start in range(0, len(prompt), _BATCH):
            self._decode(prompt[start : start + _BATCH], start)
        times: list[float] = []
        while True:
            logits = self.lib.llama_get_logits_ith(self.context, self.batch.n_tokens - 1)
            token = int(self.numpy.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
            times.append(time.perf_counter())
            if len(times) == new_tokens:
                return times
            self._decode([token], len(prompt) + len(times) - 1)

    def _decode(self, tokens: Prompt, start: int) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, start + at
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            batch.logits[at] = at + 1 == len(tokens)
        if status := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gives {status}")

    def close(self) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_free_model(self.model)


def load(load: Load) -> Running:
    return IkLlama(load)


PEER = Peer(
    name="ik_llama",
    package="ik-llama-cpp-python",
    version="0.1.5",
    installs=(("--no-binary", "ik-llama-cpp-python", "ik-llama-cpp-python==0.1.5"),),
    # Attention for the default cache (f16) only: for every pair of formats it takes an hour to compile.
    environ={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_IQK_FA_ALL_QUANTS=OFF"},
    load=load,
    models={"same": "gguf", "best": "gguf-q4_0", "8b": "8b-q4_0"},
)
