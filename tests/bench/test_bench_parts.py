"""The parts of a benchmark: what is asked, what is counted, and what is read from memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.bench.bandwidth import kv_read, read_bandwidth, weights_read
from corral.bench.measure import Trace, measure_many, measure_single, run_closed_loop, warm_up
from corral.bench.weights import WEIGHTS, random_llama, random_packed
from corral.bench.workload import Workload
from corral.engine.cache.storage import KVStorage
from corral.engine.handle import Handle
from corral.engine.request import Request
from corral.errors import RequestError
from corral.kernels.library import load
from corral.kernels.packed_llama import pack_llama
from corral.model.config import LlamaConfig
from tests.engine.engines import running_engine
from tests.kernels.networks import library, needs_native
from tests.random_models import random_model

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    dtype="float32",
)
CPU = torch.device("cpu")


@given(st.integers(1, 700), st.integers(1, 300), st.integers(0, 5))
def test_prompts_have_their_length_and_no_id_comes_more_often_than_it_must(
    length: int, vocab_size: int, seed: int
) -> None:
    workload = Workload(prompt_tokens=length, seed=seed)
    first, second = islice(workload.prompts(vocab_size), 2)
    for prompt in (first, second):
        assert len(prompt) == length
        assert all(0 <= token_id < vocab_size for token_id in prompt)
        counts = [prompt.count(token_id) for token_id in set(prompt)]
        assert max(counts) <= -(-length // vocab_size)
    assert next(workload.prompts(vocab_size)) == first


def test_the_prefix_cache_finds_nothing() -> None:
    workload = Workload(prompt_tokens=20, new_tokens=4, concurrency=3, requests=8)
    with running_engine(random_model(CONFIG)) as engine:
        warm_up(engine, workload, CONFIG.vocab_size)
        measure_single(engine, workload, CONFIG.vocab_size)
        measure_many(engine, workload, CONFIG.vocab_size)
        counters = engine.stats().counters
        assert counters.cached_tokens == 0
        assert counters.generated_tokens == 3 * 4 + 4 + 3 * 4 + 8 * 4
        assert set(counters.finished) == {"length"}


def test_a_closed_loop_runs_every_request_and_no_more_at_once_than_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workload = Workload(prompt_tokens=10, new_tokens=6)
    requests = [workload.request(p) for p in islice(workload.prompts(CONFIG.vocab_size), 7)]
    with running_engine(random_model(CONFIG)) as engine:
        handles: list[Handle] = []
        widest, submit = 0, engine.submit

        def watched(request: Request) -> Handle:
            nonlocal widest
            handle = submit(request)
            widest = max(widest, 1 + sum(not handle.done for handle in handles))
            handles.append(handle)
            return handle

        monkeypatch.setattr(engine, "submit", watched)
        traces = run_closed_loop(engine, requests, 3)
    assert [trace.num_tokens for trace in traces] == [6] * 7
    assert [handle.request for handle in handles] == requests
    assert 1 < widest <= 3
    for trace in traces:
        assert trace.seconds_to_first > 0
        assert sum(trace.gaps) == pytest.approx(trace.seconds_after_first)
        assert len(trace.gaps) == 5


def test_tokens_that_came_together_share_the_wait() -> None:
    trace = Trace(submitted=10.0, arrivals=[(11.0, 1), (13.0, 4), (14.0, 1)])
    assert trace.gaps == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert (trace.num_tokens, trace.seconds_to_first, trace.seconds_after_first) == (6, 1.0, 3.0)


def test_a_request_that_fails_ends_the_loop_with_its_error() -> None:
    workload = Workload(prompt_tokens=4, new_tokens=4)
    bad = workload.request((1, 2, 999))
    with running_engine(random_model(CONFIG)) as engine:
        good = [workload.request(p) for p in islice(workload.prompts(CONFIG.vocab_size), 3)]
        with pytest.raises(RequestError, match="outside the vocabulary"):
            run_closed_loop(engine, [*good, bad, *good], 2)


def test_more_than_there_is_memory_for_is_refused() -> None:
    workload = Workload(prompt_tokens=200, new_tokens=50)
    with (
        running_engine(random_model(CONFIG), num_blocks=20) as engine,
        pytest.raises(RequestError, match="250"),
    ):
        warm_up(engine, workload, CONFIG.vocab_size)


@pytest.mark.parametrize(
    "numbers", [{"prompt_tokens": 0}, {"new_tokens": 1}, {"concurrency": 0}, {"requests": 0}, {"seed": -1}]
)
def test_a_number_out_of_range_is_named(numbers: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=next(iter(numbers))):
        Workload(**numbers)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_reads_all_weights_but_the_rows_it_looks_up(tied: bool, dtype: torch.dtype) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied, attention_bias=True)
    model = random_llama(config, dtype, CPU)
    read = [p for p in model.parameters() if tied or p is not model.model.embed_tokens.weight]
    assert weights_read(model) == sum(p.nbytes for p in read)
    if dtype == torch.float32 and load() is not None:
        assert weights_read(pack_llama(library(), model)) == pytest.approx(
            sum(p.nbytes for p in read), rel=0.2
        )


@needs_native
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", WEIGHTS)
def test_random_packed_weights_run_and_are_counted_as_they_are_packed(form: str, tied: bool) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied, attention_bias=True)
    network = random_packed(library(), config, WEIGHTS[form], torch.float32)
    bits = {"q4_0": 4.5, "q8_0": 8.5}[form]
    inner = sum(m.shape[0] * m.shape[1] for n, m in network.matrices.items() if n.startswith("model.layers"))
    read = inner * bits / 8 + config.vocab_size * config.hidden_size * 8.5 / 8
    assert read < weights_read(network) < read * 1.2 + 4 * 400
    assert ("model.embed_tokens" in network.matrices) == (not tied)
    for matrix in network.matrices.values():
        lengths = matrix.dequantize().norm(dim=1)
        assert lengths.mean() == pytest.approx(1, abs=0.1)
    with running_engine(network) as engine:
        (trace,) = run_closed_loop(engine, [Workload(4, 5).request((1, 2, 3, 4))], 1)
    assert trace.num_tokens == 5


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_the_cache_that_is_read_grows_by_a_token_a_step(kv_dtype: str) -> None:
    per_token = KVStorage.bytes_per_block(CONFIG, 1, kv_dtype)
    assert kv_read(CONFIG, kv_dtype, 100, 20) == 110 * per_token


def test_some_bandwidth_is_measured() -> None:
    assert 1e7 < read_bandwidth(CPU) < 1e13


@pytest.mark.parametrize("tied", [False, True])
def test_random_weights_keep_activations_in_range(tied: bool) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied, vocab_size=40_000, attention_bias=True)
    model = random_llama(config, torch.bfloat16, CPU)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())
    assert model.inverse_frequencies.dtype == torch.float32
    again = random_llama(config, torch.bfloat16, CPU)
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    rows = model.model.embed_tokens.weight
    assert len(torch.unique(rows[:, :4], dim=0)) > 0.99 * len(rows)
    with running_engine(model) as engine:
        (trace,) = run_closed_loop(engine, [Workload(4, 5).request((1, 2, 3, 4))], 1)
    assert trace.num_tokens == 5
