"""Many requests through one engine, in order, whatever becomes of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from corral.engine.batches import IN_FLIGHT, run_each, try_each
from corral.engine.config import SchedulerConfig
from corral.engine.engine import Engine
from corral.engine.handle import Handle
from corral.engine.outputs import Collector
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.errors import CorralError, EngineBusyError, EngineError, RequestError
from tests.engine.engines import running_engine
from tests.random_models import SMALL_CHAT, random_model

MODEL = random_model(SMALL_CHAT)
FOUR = SamplingParams(temperature=0.0, max_tokens=4)


def ask(*tokens: int) -> Request:
    return Request(tokens, FOUR)


def tokens_of(outcome: Collector | CorralError) -> tuple[int, ...] | str:
    if isinstance(outcome, CorralError):
        return str(outcome)
    return outcome.result().outputs[0].token_ids


def test_errors_stand_in_the_place_of_their_requests() -> None:
    unrendered = RequestError("a row that could not be rendered")
    with running_engine(MODEL) as engine:
        alone = [tokens_of(outcome) for number in (5, 6) for outcome in try_each(engine, [ask(number)], None)]
        mixed: list[Request | CorralError] = [ask(5), ask(999), unrendered, ask(), ask(6)]
        outcomes = list(try_each(engine, mixed, None))
        assert [tokens_of(outcomes[0]), tokens_of(outcomes[4])] == alone
        assert "outside the vocabulary" in str(outcomes[1])
        assert outcomes[2] is unrendered
        assert "the prompt is empty" in str(outcomes[3])
        with pytest.raises(RequestError, match="outside the vocabulary"):
            list(run_each(engine, [ask(5), ask(999), ask(6)], None))


def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8, max_waiting_requests=1)
    with running_engine(MODEL, config=config) as engine:
        submit, refusals = engine.submit, []

        def watched(request: Request) -> Handle:
            try:
                return submit(request)
            except EngineBusyError as error:
                refusals.append(error)
                raise

        monkeypatch.setattr(engine, "submit", watched)
        together = [tokens_of(outcome) for outcome in try_each(engine, map(ask, range(40)), None)]
        assert refusals
        assert together == [tokens_of(next(try_each(engine, [ask(number)], None))) for number in range(40)]


def test_requests_are_taken_only_as_there_is_room_and_the_rest_is_cancelled_when_it_is_left() -> None:
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8)
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield ask(taken % 300)

    with running_engine(MODEL, config=config) as engine:  # which checks at its end that nothing runs
        outcomes = run_each(engine, endless(), None)
        for number in range(1, 4):
            next(outcomes)
            assert taken <= IN_FLIGHT * 2 + number - 1
        outcomes.close()  # type: ignore[attr-defined]
        wait_until_idle(engine)


def wait_until_idle(engine: Engine) -> None:
    """Cancelling takes effect with the next step."""
    list(run_each(engine, [ask(1)], None))


def test_a_closed_engine_ends_the_batch() -> None:
    with running_engine(MODEL) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        list(try_each(engine, [ask(5)], None))
