"""Adapters are loaded and unloaded while requests come: each request runs with what it was taken on with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.engine.engine import Engine
from corral.engine.events import Finished
from corral.engine.grammar.matcher import Matcher
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.errors import RequestError
from tests.engine.engines import run, running_engine
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL_CHAT, random_model

MODEL = random_model(SMALL_CHAT)
FOREVER = SamplingParams(temperature=0.0, max_tokens=100_000)
PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two")}
    for seed, folder in enumerate(folders.values()):
        write_adapter(MODEL, folder, seed=seed)
    return folders


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    with running_engine(MODEL) as engine:
        engine.load_adapter("mine", folders["one"])
        yield engine


def ask(engine: Engine) -> tuple[int, ...]:
    (output,) = run(engine, [Request(PROMPT, SamplingParams(temperature=0.0, max_tokens=8), adapter="mine")])
    return output.outputs[0].token_ids


def test_an_adapter_stays_while_a_request_runs_or_waits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule, go_on = engine._core.scheduler.schedule, threading.Event()

    def held_up() -> Any:
        go_on.wait(60)
        return schedule()

    monkeypatch.setattr(engine._core.scheduler, "schedule", held_up)
    plain = engine.submit(Request(PROMPT, FOREVER))  # the engine's thread is held up with it
    handle = engine.submit(Request(PROMPT, FOREVER, adapter="mine"))  # so that this one is on its way
    refusals: list[str] = []

    def unload() -> None:
        try:
            engine.unload_adapter("mine")
        except RequestError as error:
            refusals.append(str(error))

    unloading = threading.Thread(target=unload)
    unloading.start()
    go_on.set()
    unloading.join()
    assert "is used by a request that runs or waits" in refusals[0]
    for one in (plain, handle):
        one.cancel()
        *_, last = one
        assert isinstance(last, Finished)
        assert last.reason == "cancelled"
    engine.unload_adapter("mine")
    with pytest.raises(RequestError, match="adapter 'mine' is not loaded"):
        engine.submit(Request(PROMPT, FOREVER, adapter="mine"))


@pytest.mark.parametrize("anew", [False, True])
def test_an_adapter_that_changes_while_a_request_is_taken_on(
    engine: Engine, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    old = ask(engine)

    def compile_meanwhile(_: Request) -> Matcher | None:
        monkeypatch.undo()
        engine.unload_adapter("mine")
        if anew:
            engine.load_adapter("mine", folders["two"])
        return None

    monkeypatch.setattr(engine, "_matcher", compile_meanwhile)
    if not anew:
        with pytest.raises(RequestError, match="adapter 'mine' is not loaded"):
            ask(engine)
        return
    new = ask(engine)
    assert new != old
    engine.reset_prefix_cache()
    assert ask(engine) == new, "the first was computed from what the old adapter had cached"


def test_adapters_come_and_go_under_fire(engine: Engine, folders: dict[str, Path]) -> None:
    expected = {}
    for name, folder in folders.items():
        engine.unload_adapter("mine")
        engine.load_adapter("mine", folder)
        expected[name] = ask(engine)
    stop, answers, refusals = threading.Event(), set(), set()

    def fire() -> None:
        while not stop.wait(0.003):
            try:
                answers.add(ask(engine))
            except RequestError as error:
                refusals.add(str(error))

    threads = [threading.Thread(target=fire) for _ in range(2)]
    for thread in threads:
        thread.start()
    changes = 0
    while changes < 20:
        try:
            engine.unload_adapter("mine")
        except RequestError:
            continue
        engine.load_adapter("mine", folders[("one", "two")[changes % 2]])
        changes += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert answers <= set(expected.values())
    assert refusals <= {"adapter 'mine' is not loaded; loaded are: none"}
