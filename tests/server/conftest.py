"""Servers that tests share: the default model behind HTTP, and a small one with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from corral.llm import LLM
from corral.model.presets import DEFAULT_MODEL
from tests.checkpoints.writers import write_chat_model
from tests.engine.engines import check_idle, wait_until
from tests.random_models import SMALL_CHAT
from tests.server.live_server import LiveServer, live_server

__all__ = ["LiveServer"]


@pytest.fixture(scope="session")
def lasting_server(smollm2_path: Path) -> Iterator[LiveServer]:
    with live_server(LLM(str(smollm2_path), threads=1), DEFAULT_MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def server(lasting_server: LiveServer) -> Iterator[LiveServer]:
    """The default model behind HTTP, in this process. A module leaves nothing behind that runs."""
    yield lasting_server
    check_left_idle(lasting_server)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A model that answers at once, and with nonsense; its context has 2048 tokens."""
    folder = tmp_path_factory.mktemp("small")
    write_chat_model(folder, config=replace(SMALL_CHAT, max_position_embeddings=2048))
    llm = LLM(str(folder), threads=1)
    with live_server(llm, "small") as server:
        yield server
        check_left_idle(server)


def check_left_idle(server: LiveServer) -> None:
    """Asserts that what has been asked is over, and no block is in use."""
    engine = server.service.llm.engine
    wait_until(lambda: not server.service.num_running and not engine.stats().blocks_used)
    check_idle(engine)
