"""ik_llama.cpp, a fork of llama.cpp made for CPUs.

Weights are repacked when they are loaded, attention is the fork's fused one, and memory is in huge pages
where it can be: what its makers recommend for speed. The wheel on PyPI is built without AVX-512, and from the
source beside it pip cannot build, because a file is missing that one of the tools needs. So the library alone
is built here, for this very processor, and takes the place of the wheel's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from .base import Load, Peer, Prompt, Running

_VERSION = "0.1.5"
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


def build(folder: Path) -> list[list[str]]:
    """Commands that put the library, built for this processor, into the environment in a folder."""
    python = str(folder / "bin" / "python")
    source, build = folder / "source", folder / "build"
    unpacked = source / f"ik_llama_cpp_python-{_VERSION}"
    vendored = build / "vendor" / "ik_llama.cpp"
    release = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    wheel = folder / "lib" / release / "site-packages" / "ik_llama_cpp" / "lib"
    download = [python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(source)]
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "ON",
        "GGML_NATIVE": "ON",
        "GGML_IQK_FA_ALL_QUANTS": "OFF",  # the cache is in f16; to compile all pairs of formats takes an hour
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
    }
    return [
        [*download, f"ik-llama-cpp-python=={_VERSION}"],
        [python, "-m", "tarfile", "-e", f"{unpacked}.tar.gz", str(source)],
        [
            "cmake",
            "-S",
            str(unpacked),
            "-B",
            str(build),
            *(f"-D{key}={value}" for key, value in options.items()),
        ],
        ["cmake", "--build", str(build), "--target", "llama", "--parallel", "2"],
        ["cmake", "-E", "copy", str(vendored / "src" / "libllama.so"), str(wheel)],
        ["cmake", "-E", "copy", str(vendored / "ggml" / "src" / "libggml.so"), str(wheel)],
        ["cmake", "-E", "rm", "-r", str(source), str(build)],
    ]


PEER = Peer(
    name="ik_llama",
    package="ik-llama-cpp-python",
    version=_VERSION,
    installs=((f"ik-llama-cpp-python=={_VERSION}",),),
    finish=build,
    load=load,
    models={"same": "gguf", "best": "gguf-q4_0", "8b": "8b-q4_0"},
)
