"""Steps by the native kernels: equal to torch's, and the same bits in any company."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from corral.engine.cache.storage import KVStorage
from corral.engine.config import SchedulerConfig
from corral.engine.networks import Runners
from corral.engine.options import EngineOptions
from corral.engine.request import Request
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.runner import Runner, TorchRunner
from corral.engine.sampling.params import SamplingParams
from corral.kernels.library import KernelError, Pool
from corral.kernels.packed_llama import PackedLlama
from corral.kernels.program import run as run_steps
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from tests.engine.engines import run, running_engine
from tests.kernels.networks import MODEL, ODD, TIED, library, packed, quantized_pair
from tests.peft_adapters import write_adapter
from tests.random_models import random_model

BLOCKS, BLOCK_SIZE = 200, 16
CPU = torch.device("cpu")


def native(
    network: PackedLlama, *, kv: str = "auto", threads: int = 2, exact: bool = False
) -> tuple[Runner, AdapterSet]:
    options = EngineOptions(kernels="native", threads=threads, exact_activations=exact)
    storage = KVStorage(network.config, BLOCKS, BLOCK_SIZE, kv, network.dtype)
    adapters = AdapterSet(network)
    return Runners(options, CPU).runner(network, storage, adapters), adapters


def plain(model: Llama, kv: str = "auto") -> tuple[Runner, AdapterSet]:
    adapters = AdapterSet(model)
    storage = KVStorage(model.config, BLOCKS, BLOCK_SIZE, kv, model.dtype)
    return TorchRunner(model, storage, adapters), adapters


def tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(128), k=count)


def logits_of(runner: Runner, adapters: Sequence[str | None] = (None, None, None)) -> Tensor:
    """Of every token of two prompts that go on in a second step, beside a third that begins there."""
    tables = [list(range(1, 90)), [120, 90, 150, 91], [95, 94, 93]]
    texts = [tokens(600, 1), tokens(20, 2), tokens(9, 3)]
    steps = [[(0, 0, 590), (1, 0, 17)], [(0, 590, 591), (1, 17, 20), (2, 0, 9)], [(0, 591, 600)]]
    rows = []
    for step in steps:
        spans = [
            Span(texts[i][start:end], start, tables[i], range(end - start), adapters[i])
            for i, start, end in step
        ]
        names = [span.adapter for span in spans for _ in span.tokens]
        rows.append(runner.logits(runner.run(spans), names).float())
    return torch.cat(rows)


@pytest.mark.parametrize("config", [MODEL, TIED, ODD], ids=["plain", "tied", "odd sizes and biases"])
@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_float32_equals_torch(config: LlamaConfig, kv: str) -> None:
    expected = logits_of(plain(random_model(config), kv)[0])
    got = logits_of(native(packed(config), kv=kv)[0])
    # An int8 cache rounds: a last bit before may be a step of 1/127 after.
    torch.testing.assert_close(got, expected, atol=1e-4 if kv == "auto" else 3e-2, rtol=1e-4)


def test_bfloat16_is_as_near_to_float32_as_torchs() -> None:
    exact = logits_of(plain(random_model(MODEL))[0])
    torchs = (logits_of(plain(random_model(MODEL).bfloat16())[0]) - exact).abs().mean()
    ours = (logits_of(native(packed(MODEL, torch.bfloat16))[0]) - exact).abs().mean()
    assert ours <= torchs * 1.1


@pytest.mark.parametrize("config", [MODEL, TIED], ids=["plain", "tied"])
def test_quantized_weights_of_all_kinds_in_one_layer(config: LlamaConfig) -> None:
    network, floats = quantized_pair(config)
    expected = logits_of(plain(floats)[0])

    def error(got: Tensor) -> float:
        return float((got - expected).pow(2).mean() / expected.pow(2).mean())

    rounded = error(logits_of(plain(floats.bfloat16())[0]))
    exact = error(logits_of(native(network, exact=True)[0]))
    fast = error(logits_of(native(network)[0]))
    assert exact < rounded, "bfloat16 activations alone are nearer than bfloat16 everywhere"
    assert exact < fast < (2**-5) ** 2, "8-bit activations are off by half of 1/127 of the largest in a group"


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "quantized", "exact"])
def test_company_chunks_cache_and_threads_change_not_one_bit(kind: str) -> None:
    network: PackedLlama
    if kind in ("float32", "bfloat16"):
        network = packed(MODEL, getattr(torch, kind))
    else:
        network, _ = quantized_pair(MODEL)

    def logprobs(threads: int, count: int, budget: int, caching: bool) -> list[list[float]]:
        runner, _ = native(network, threads=threads, exact=kind == "exact")
        params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=0, prompt_logprobs=0, ignore_eos=True)
        scored = [Request(tokens(n, n), params) for n in (1, 70, 300)]
        others = [Request(tokens(5 + i % 40, i), SamplingParams(max_tokens=20, seed=i)) for i in range(count)]
        config = SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=64)
        with running_engine(
            network,
            runner=runner,
            num_blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            config=config,
            prefix_caching=caching,
        ) as engine:
            if caching:
                run(engine, scored)
            outputs = run(engine, [*others[::2], *scored, *others[1::2]])[len(others[::2]) :][:3]
        found = []
        for output in outputs:
            chosen = zip(output.outputs[0].token_ids, output.outputs[0].logprobs or (), strict=True)
            prompt = zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True)
            found.append([p[i].logprob for i, p in [*prompt, *chosen] if p is not None])
        return found

    alone = logprobs(1, 0, 512, False)
    assert [len(values) for values in alone] == [8, 77, 307]
    for threads, count, budget, caching in [
        (2, 0, 512, False),
        (3, 30, 512, False),
        (2, 61, 128, True),
        (1, 5, 65, True),
    ]:
        assert logprobs(threads, count, budget, caching) == alone, (threads, count, budget, caching)


def test_adapters_are_torchs_in_a_mixed_batch(tmp_path: Path) -> None:
    write_adapter(random_model(MODEL), tmp_path / "a", target_modules="all-linear", r=3)
    write_adapter(random_model(MODEL), tmp_path / "b", target_modules=["v_proj", "lm_head"], r=40, seed=1)
    runners = plain(random_model(MODEL)), native(packed(MODEL))
    for _, adapters in runners:
        adapters.load("a", tmp_path / "a")
        adapters.load("b", tmp_path / "b")
    for names in (("a", None, "b"), ("b", "a", None)):
        expected, got = (logits_of(runner, names) for runner, _ in runners)
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)  # the adapters make large numbers
        assert (expected - logits_of(runners[0][0])).abs().max() > 0.01, "the adapters do nothing"


def test_closed_threads_refuse_in_words() -> None:
    pool = Pool(library(), 2)
    program = packed(MODEL).head_program()
    rows = np.zeros((1, MODEL.hidden_size), np.float32)
    run_steps(pool, program.step_of_rows(rows))
    pool.close()
    with pytest.raises(KernelError, match="closed"):
        run_steps(pool, program.step_of_rows(rows))


def test_the_best_tokens_are_those_of_a_row_that_is_shared() -> None:
    """A row longer than a thread's piece: the first of the greatest, wherever it lies, and NaN above all."""
    network = packed(replace(MODEL, vocab_size=20_000))
    program = network.head_program()
    hidden = np.random.default_rng(0).normal(size=(9, MODEL.hidden_size)).astype(np.float32)
    hidden[3] = 0.0  # all logits are equal
    hidden[5, 7] = np.nan  # no logit is a number
    for threads in (1, 3):
        step = program.step_of_rows(hidden, best=True)
        run_steps(Pool(library(), threads), step)
        assert step.best is not None
        values, ids = step.best
        assert (
            ids.tolist() == step.out.argmax(1).tolist()
        )  # NumPy too takes the first, and NaN for the greatest
        np.testing.assert_array_equal(values, step.out[np.arange(9), ids])
        assert ids[3] == ids[5] == 0
        assert np.isnan(values).tolist() == [row == 5 for row in range(9)]
        assert len({int(i) // 8192 for i in ids}) > 1, "the greatest are in several pieces"
