"""Decode steps of fixed size, as a CUDA graph replays them; run here without the graph."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from corral.engine.cache.storage import KVStorage
from corral.engine.request import Request
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.graphs import GraphRunner
from corral.engine.sampling.params import SamplingParams
from corral.model.llama import Llama
from tests.engine.engines import BLOCK_SIZE, run, running_engine

BLOCKS = 400


def test_steps_of_fixed_size_give_the_same_and_are_captured_once(llama31_model: Llama) -> None:
    captured: list[Callable[[], Tensor]] = []

    def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        captured.append(function)
        return function

    storage = KVStorage(llama31_model.config, BLOCKS, BLOCK_SIZE, "auto", llama31_model.dtype)
    runner = GraphRunner(llama31_model, storage, AdapterSet(llama31_model), capture)
    # Together they shrink from 5 rows to 1 and grow from 1 block to 8.
    requests = [
        Request(
            [i + 2] * (i + 1), SamplingParams(temperature=0.0, max_tokens=5 * i + 4, logprobs=0), priority=i
        )
        for i in range(5)
    ]
    with running_engine(llama31_model) as engine:
        expected = run(engine, requests)
    with running_engine(llama31_model, runner=runner, num_blocks=BLOCKS) as engine:
        got = run(engine, requests)
        for _ in range(2):  # which requests meet in a step depends on the clock
            run(engine, requests)
    assert [o.outputs[0].token_ids for o in got] == [o.outputs[0].token_ids for o in expected]
    for one, other in zip(got, expected, strict=True):
        left, right = one.outputs[0].cumulative_logprob, other.outputs[0].cumulative_logprob
        assert left is not None
        assert right is not None
        assert abs(left - right) < 1e-4
    # Batches of 8, 4, 2 and 1 with tables of 1, 2, 4 and 8 blocks; the three runs take more than 70 steps.
    assert 3 <= len(captured) <= 16, "a size was captured twice"
