"""What goes wrong stays with the request that it befell: the engine and all others go on."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from corral.engine.cache.storage import KVStorage
from corral.engine.config import SchedulerConfig
from corral.engine.engine import Engine
from corral.engine.events import Event, Failed, Finished, Tokens
from corral.engine.handle import Handle
from corral.engine.request import Request
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.engine.run.runner import TorchRunner
from corral.engine.sampling.params import SamplingParams
from corral.engine.scheduler import Work
from corral.engine.speculation.speculator import NoSpeculation
from corral.errors import EngineBusyError, EngineError
from corral.model.llama import Llama
from tests.engine.engines import check_idle, run, running_engine, wait_until

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
POISON, BROKEN, PANIC = 500, 501, 502  # token ids at which `FragileRunner` raises, or computes no numbers


class Panic(BaseException):
    """What a library in Rust raises: no `Exception`."""


class FragileRunner(TorchRunner):
    """The real thing, but for three tokens that it cannot bear."""

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        hidden = super().run(spans)
        tokens = [token for span in spans for token in span.tokens]
        if POISON in tokens:
            raise RuntimeError("the device does not like this token")
        if PANIC in tokens:
            raise Panic("called `Option::unwrap()` on a `None` value")
        wanted = [span for span in spans for _ in span.wanted]
        broken = [row for row, span in enumerate(wanted) if BROKEN in span.tokens]
        hidden[broken] = float("nan")
        return hidden


@pytest.fixture
def fragile(llama31_model: Llama) -> Iterator[Engine]:
    storage = KVStorage(llama31_model.config, 400, 4, "auto", llama31_model.dtype)
    runner = FragileRunner(llama31_model, storage, AdapterSet(llama31_model))
    with running_engine(llama31_model, runner=runner) as engine:
        yield engine


@pytest.mark.parametrize(("token", "said"), [(POISON, "does not like this token"), (PANIC, "Panic: called")])
def test_a_poisonous_request_fails_alone(fragile: Engine, token: int, said: str) -> None:
    good = [Request([i + 2] * 9, GREEDY) for i in range(6)]
    expected = [output.outputs[0].token_ids for output in run(fragile, good)]
    fragile.reset_prefix_cache()
    handles = [fragile.submit(request) for request in good[:3]]
    bad = fragile.submit(Request([5, token, 7], GREEDY))
    handles += [fragile.submit(request) for request in good[3:]]
    *_, failed = bad
    assert isinstance(failed, Failed)
    assert said in str(failed.error)
    assert fragile.stats().counters.failures == 1
    for handle, tokens in zip(handles, expected, strict=True):
        assert [i for e in handle if isinstance(e, Tokens) for i in e.token_ids] == list(tokens)


def test_numbers_that_are_none_end_one_output_and_leave_nothing_behind(fragile: Engine) -> None:
    (output,) = run(fragile, [Request([5, 6, BROKEN], GREEDY)])
    assert output.outputs[0].finish_reason == "error"
    assert "not finite" in (output.outputs[0].error or "")
    (again,) = run(fragile, [Request([5, 6, 7], GREEDY)])
    assert again.outputs[0].finish_reason == "length"


def test_a_request_of_several_outputs_fails_once(fragile: Engine) -> None:
    params = SamplingParams(n=3, max_tokens=8, logit_bias={POISON: 1000.0})
    good = fragile.submit(Request([5, 6, 7], GREEDY))
    events = list(fragile.submit(Request([5, 6, 7], params)))
    assert [isinstance(event, Failed) for event in events] == [False] * (len(events) - 1) + [True]
    assert len(tokens_of(list(good))) == 8


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


class StubbornRunner(FragileRunner):
    """A device that neither copies nor clears a block."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        raise RuntimeError("no copies today")

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        raise RuntimeError("nothing is ever cleared")


@pytest.mark.parametrize(
    ("tokens", "params", "said"),
    [
        ([5, 6, 7], SamplingParams(n=2, max_tokens=4, seed=1), "no copies today"),
        ([5, 6, BROKEN], GREEDY, "nothing is ever cleared"),
        ([5, 6, POISON], GREEDY, "does not like this token"),
    ],
)
def test_trouble_with_blocks_ends_the_request_and_not_the_engine(
    llama31_model: Llama, tokens: list[int], params: SamplingParams, said: str
) -> None:
    storage = KVStorage(llama31_model.config, 400, 4, "auto", llama31_model.dtype)
    runner = StubbornRunner(llama31_model, storage, AdapterSet(llama31_model))
    with running_engine(llama31_model, runner=runner) as engine:
        *_, last = engine.submit(Request(tokens, params))
        assert isinstance(last, Failed)
        assert said in str(last.error)
        check_idle(engine)
        assert len(tokens_of(list(engine.submit(Request([8, 9], GREEDY))))) == 8


class BadGuesser(NoSpeculation):
    """Wants to guess, and cannot."""

    def draft_length(self, sequence: object, num_decodes: int) -> int:
        return 2

    def propose(self, works: Sequence[Work]) -> list[list[int]]:
        raise Panic("no idea")


def test_guesses_that_fail_change_nothing(llama31_model: Llama) -> None:
    request = Request([5, 6, 7], GREEDY)
    with running_engine(llama31_model) as engine:
        expected = tokens_of(list(engine.submit(request)))
    with running_engine(llama31_model, speculate=BadGuesser()) as engine:
        assert tokens_of(list(engine.submit(request))) == expected


@pytest.mark.parametrize("drain", [False, True])
def test_closing_while_others_submit_and_cancel_ends_every_request(llama31_model: Llama, drain: bool) -> None:
    handles: list[Handle] = []

    def submit(engine: Engine, seed: int) -> None:
        choose = random.Random(seed)
        while True:
            params = SamplingParams(n=choose.randint(1, 3), max_tokens=choose.randint(1, 9), seed=seed)
            try:
                handle = engine.submit(Request([seed + 2] * choose.randint(1, 20), params))
            except EngineBusyError:
                continue
            except EngineError:
                return
            handles.append(handle)
            if choose.random() < 0.5:
                handle.cancel()

    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, max_waiting_requests=40)
    with running_engine(llama31_model, config=config, num_blocks=30) as engine:
        threads = [threading.Thread(target=submit, args=(engine, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(handles) > 60)
        engine.close(drain=drain)
        for thread in threads:
            thread.join()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        engine.check_integrity = lambda: None  # type: ignore[method-assign]  # its thread has ended
    for handle in handles:
        assert handle.done
        ends = [event for event in handle if isinstance(event, Finished)]
        assert sorted(end.index for end in ends) == list(range(handle.request.params.n))
