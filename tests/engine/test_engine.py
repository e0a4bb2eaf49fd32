"""What callers of the engine may rely on: events, ends, refusals, and that one request harms no other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from corral.engine.config import SchedulerConfig
from corral.engine.engine import Engine
from corral.engine.events import Event, Finished, PromptScored, Started, Tokens
from corral.engine.handle import Handle
from corral.engine.request import Request, Score
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import EngineBusyError, EngineError, RequestError
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from tests.engine.engines import check_idle, run, running_engine, wait_until

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
FOREVER = SamplingParams(temperature=0.0, max_tokens=100_000)


@pytest.fixture
def engine(llama31_model: Llama) -> Iterator[Engine]:
    with running_engine(llama31_model) as engine:
        yield engine


def test_a_request_tells_its_life_in_order(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    events = list(engine.submit(Request([5, 6, 7], params)))
    started, scored, *tokens, finished = events
    assert started == Started(prompt_tokens=3, cached_tokens=0)
    assert isinstance(scored, PromptScored)
    assert len(scored.logprobs) == 2
    assert all(isinstance(event, Tokens) for event in tokens)
    assert [len(e.token_ids) for e in tokens if isinstance(e, Tokens)] == [1, 1, 1, 1]
    assert isinstance(finished, Finished)
    assert finished.reason == "length"
    assert finished.usage.completion_tokens == 4
    assert finished.timings.total >= finished.timings.decode > 0


def test_events_come_in_an_event_loop_too(engine: Engine) -> None:
    async def collect(request: Request) -> list[Event]:
        return [event async for event in engine.submit(request)]

    async def both() -> tuple[list[Event], list[Event]]:
        return await asyncio.gather(collect(Request([5, 6], GREEDY)), collect(Request([7], GREEDY)))

    first, second = asyncio.run(both())
    plain = run(engine, [Request([5, 6], GREEDY), Request([7], GREEDY)])
    for events, output in zip((first, second), plain, strict=True):
        tokens = [i for e in events if isinstance(e, Tokens) for i in e.token_ids]
        assert tuple(tokens) == output.outputs[0].token_ids


def test_many_threads_may_submit_at_once(engine: Engine) -> None:
    def ask(index: int) -> None:
        (answers[index],) = run(engine, [Request([index + 2] * 5, GREEDY)])

    answers: dict[int, object] = {}
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16


def test_a_cancelled_request_gives_its_blocks_back(engine: Engine) -> None:
    handle = engine.submit(Request([5, 6, 7], FOREVER))
    events = iter(handle)
    next(events), next(events)
    assert engine.stats().blocks_used > 0
    handle.cancel()
    *_, last = events
    assert isinstance(last, Finished)
    assert last.reason == "cancelled"
    check_idle(engine)


def test_whoever_leaves_the_events_early_cancels_the_request(engine: Engine) -> None:
    def leave() -> Handle:
        handle = engine.submit(Request([5, 6, 7], FOREVER))
        for event in handle:
            if isinstance(event, Tokens):
                break
        return handle

    async def aleave() -> Handle:
        handle = engine.submit(Request([5, 6, 7], FOREVER))
        async for event in handle:
            if isinstance(event, Tokens):
                break
        return handle

    async def be_cancelled() -> Handle:
        handle = engine.submit(Request([5, 6, 7], FOREVER))

        async def consume() -> None:
            async for _ in handle:
                listens.set()

        listens = asyncio.Event()
        task = asyncio.create_task(consume())
        await listens.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return handle

    for handle in (leave(), asyncio.run(aleave()), asyncio.run(be_cancelled())):
        *_, last = handle  # what was said since lies ready
        assert isinstance(last, Finished)
        assert last.reason == "cancelled"
    check_idle(engine)


def test_a_request_that_nobody_listens_to_runs_to_its_end(engine: Engine) -> None:
    handle = engine.submit(Request([5, 6, 7], GREEDY))
    wait_until(lambda: handle.done)
    assert engine.stats().counters.finished == {"length": 1}
    assert len([event for event in handle if isinstance(event, Tokens)]) == 8


def test_a_cancelled_request_that_waits_never_runs(llama31_model: Llama) -> None:
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=64)
    with running_engine(llama31_model, config=config) as engine:
        first, second = (engine.submit(Request([5, 6, 7], FOREVER)) for _ in range(2))
        second.cancel()
        (end,) = list(second)
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.completion_tokens) == ("cancelled", 0)
        first.cancel()
        list(first)


def test_several_outputs_are_cancelled_together(llama31_model: Llama) -> None:
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=8, max_prefill_chunk=1)
    params = SamplingParams(n=4, max_tokens=100_000)
    with running_engine(llama31_model, config=config) as engine:
        for events_before in (1, 12):  # before the prompt is read, and after
            handle = engine.submit(Request([5] * 200, params))
            events = iter(handle)
            for _ in range(events_before):
                next(events)
            handle.cancel()
            ends = [event for event in events if isinstance(event, Finished)]
            assert sorted(end.index for end in ends) == [0, 1, 2, 3]
            assert {end.reason for end in ends} == {"cancelled"}


def test_a_timeout_ends_a_request_whether_it_runs_or_waits(llama31_model: Llama) -> None:
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=64)
    with running_engine(llama31_model, config=config) as engine:
        handles = [engine.submit(Request([5], FOREVER, timeout=0.2)) for _ in range(2)]
        for handle in handles:
            *_, last = handle
            assert isinstance(last, Finished)
            assert last.reason == "cancelled"
            assert "timeout of 0.2 s" in (last.message or "")


def test_the_queue_is_bounded_by_requests_and_by_tokens(llama31_model: Llama) -> None:
    config = SchedulerConfig(
        max_num_seqs=1, max_num_batched_tokens=64, max_waiting_requests=3, max_waiting_tokens=50
    )
    with running_engine(llama31_model, config=config) as engine:
        running = engine.submit(Request([5], FOREVER))
        events = iter(running)
        next(events)
        waiting = [engine.submit(Request([6], GREEDY)) for _ in range(3)]
        with pytest.raises(EngineBusyError, match="max_waiting_requests"):
            engine.submit(Request([6], GREEDY))
        waiting[0].cancel()
        list(waiting[0])
        with pytest.raises(EngineBusyError, match="max_waiting_tokens"):
            engine.submit(Request([6] * 49, GREEDY))
        running.cancel()
        for handle in waiting[1:]:
            list(handle)
        list(engine.submit(Request([6] * 200, GREEDY)))  # alone, it may be as long as the context


def test_a_prompt_is_counted_once_however_often_it_is_tried(llama31_model: Llama) -> None:
    prompt = [7 * i % 512 for i in range(40)]
    with running_engine(llama31_model, num_blocks=16) as engine:
        run(engine, [Request(prompt, GREEDY)])
        first = engine.submit(Request([5] * 30, replace(GREEDY, max_tokens=20)))
        events = iter(first)
        next(events)
        (second,) = run(engine, [Request(prompt, GREEDY)])  # which has no room before the first has ended
        counters = engine.stats().counters
        assert counters.prompt_tokens == 40 + 30 + 40
        assert counters.cached_tokens == second.num_cached_tokens > 0
        assert engine.stats().evictions > 0


def test_better_priorities_run_first_and_equal_ones_in_order(llama31_model: Llama) -> None:
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=64)
    with running_engine(llama31_model, config=config) as engine:
        first = engine.submit(Request([5], FOREVER, priority=-9))
        events = iter(first)
        next(events)
        order: list[int] = []
        priorities = [3, 1, 2, 1, 3, 0]
        handles = [engine.submit(Request([6], GREEDY, priority=p)) for p in priorities]
        wait_until(lambda: engine.stats().waiting == 6)
        first.cancel()
        starts = {}
        for index, handle in enumerate(handles):
            end = list(handle)[-1]
            assert isinstance(end, Finished)
            starts[index] = end.timings.queued + handle_submitted(index)
        order = sorted(starts, key=lambda index: starts[index])
        assert order == [5, 1, 3, 2, 0, 4]


def handle_submitted(index: int) -> float:
    """Requests are submitted within milliseconds, and run for longer than that."""
    return index * 1e-4


def test_nobody_starves(llama31_model: Llama) -> None:
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=64, max_overtakes=10)
    with running_engine(llama31_model, config=config) as engine:
        busy = [engine.submit(Request([5], GREEDY, priority=0)) for _ in range(4)]
        humble = engine.submit(Request([6], GREEDY, priority=1000))
        overtook = 0
        while not humble.done:  # there are always urgent requests, for as long as it takes
            list(busy.pop(0))
            busy.append(engine.submit(Request([5], GREEDY, priority=0)))
            overtook += 1
            assert overtook < 40
        for handle in busy:
            list(handle)
        end = list(humble)[-1]
        assert isinstance(end, Finished)
        assert end.reason == "length"


def test_an_idle_engine_does_nothing(engine: Engine) -> None:
    run(engine, [Request([5], GREEDY)])
    clock = time.pthread_getcpuclockid(engine._thread.ident or 0)
    before, steps = time.clock_gettime(clock), engine.stats().counters.steps
    time.sleep(0.5)
    assert engine.stats().counters.steps == steps
    assert time.clock_gettime(clock) - before < 0.05  # a tenth of what waiting busily would take


def test_closing_drains_or_cancels(llama31_model: Llama) -> None:
    with running_engine(llama31_model) as engine:
        handle = engine.submit(Request([5], GREEDY))
        engine_closed(engine, drain=True)
        (*_, last) = handle
        assert isinstance(last, Finished)
        assert last.reason == "length"
        with pytest.raises(EngineError, match="closed"):
            engine.submit(Request([5], GREEDY))
        with pytest.raises(EngineError, match="closed"):
            engine.check_integrity()
        engine.check_integrity = lambda: None  # type: ignore[method-assign]  # its thread has ended
    with running_engine(llama31_model) as engine:
        handle = engine.submit(Request([5], FOREVER))
        engine_closed(engine, drain=False)
        (*_, last) = handle
        assert isinstance(last, Finished)
        assert last.reason == "cancelled"
        engine.check_integrity = lambda: None  # type: ignore[method-assign]


def engine_closed(engine: Engine, *, drain: bool) -> None:
    engine.close(drain=drain)
    assert (engine.stats().running, engine.stats().blocks_used) == (0, 0)


def test_scores_are_those_of_one_plain_pass(llama31_model: Llama) -> None:
    tokens = [7 * i % 512 for i in range(3, 90)]
    hidden = llama31_model(torch.tensor(tokens), torch.arange(len(tokens)), PackedCausal([0, len(tokens)]))
    logprobs = llama31_model.logits(hidden).log_softmax(-1)
    for chunk in (None, 7):
        config = SchedulerConfig(max_prefill_chunk=chunk)
        with running_engine(llama31_model, config=config) as engine:
            for start in (1, 60, 86):
                score = Score(start=start, top=3, next_top=2, next_token_ids=(9, 10))
                events = list(engine.submit(Request(tokens, score=score)))
                (scored,) = [event for event in events if isinstance(event, PromptScored)]
                assert scored.start == start
                for i, at in enumerate(scored.logprobs, start):
                    assert at.chosen.token_id == tokens[i]
                    assert at.chosen.logprob == pytest.approx(float(logprobs[i - 1, tokens[i]]), abs=1e-4)
                    best = logprobs[i - 1].topk(3)
                    assert [t.token_id for t in at.top] == best.indices.tolist()
                assert len(scored.logprobs) == len(tokens) - start
                by_id = {t.token_id: t.logprob for t in scored.next_tokens}
                assert {9, 10, int(logprobs[-1].argmax())} <= by_id.keys()
                for token_id, value in by_id.items():
                    assert value == pytest.approx(float(logprobs[-1, token_id]), abs=1e-4)
            started = next(iter(engine.submit(Request(tokens, score=Score(start=86)))))
            assert started == Started(87, cached_tokens=84)  # the prefix cache serves scoring too


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (lambda: Request([], GREEDY), "the prompt is empty"),
        (lambda: Request([5] * 1596, GREEDY), "1596 tokens and the context has room for 1595"),
        (lambda: Request([5, 512], GREEDY), "token id 512, outside the vocabulary of 512"),
        (lambda: Request([5, -1], GREEDY), "token id -1"),
        (lambda: Request([5, 1.5], GREEDY), "holds 1.5"),  # type: ignore[list-item]
        (lambda: Request([5], SamplingParams(n=65)), "n is 65; this engine runs 64"),
        (lambda: Request([5], SamplingParams(stop_token_ids=(512,))), "stop_token_ids holds token id 512"),
        (lambda: Request([5], SamplingParams(logit_bias={512: 1.0})), "logit_bias holds token id 512"),
        (lambda: Request([5], SamplingParams(min_tokens=1596)), "min_tokens is 1596"),
        (lambda: Request([5], GREEDY, adapter="nobody"), "adapter 'nobody' is not loaded"),
        (lambda: Request([5], GREEDY, timeout=0), "timeout is 0"),
        (lambda: Request([5], GREEDY, priority=2**40), "priority is"),
        (lambda: Request([5], score=Score(start=1)), "score.start is 1"),
        (lambda: Request([5, 6], score=Score(next_token_ids=(900,))), "score.next_token_ids holds"),
        (
            lambda: Request([5], SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))),
            "structured_outputs needs a tokenizer",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_taken_on(
    engine: Engine, request_of: object, said: str
) -> None:
    assert callable(request_of)
    with pytest.raises(RequestError) as refusal:
        engine.submit(request_of())
    assert said in str(refusal.value)
