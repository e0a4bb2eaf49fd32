"""A server whose queue is full for as long as a test likes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from corral.engine.sampling.params import SamplingParams
from corral.llm import LLM
from tests.checkpoints.writers import write_chat_model
from tests.engine.engines import wait_until
from tests.random_models import SMALL_CHAT
from tests.server.live_server import LiveServer, live_server


@contextmanager
def narrow_server(folder: Path) -> Iterator[LiveServer]:
    """A server that runs one request while one other waits."""
    write_chat_model(folder, config=replace(SMALL_CHAT, max_position_embeddings=2**16))
    llm = LLM(str(folder), threads=1, max_num_seqs=1, max_waiting_requests=1)
    with live_server(llm, "narrow") as server:
        yield server


@contextmanager
def full_queue(server: LiveServer) -> Iterator[None]:
    """Meanwhile no further request is taken."""
    llm = server.service.llm
    request = llm.request("Hi", SamplingParams(ignore_eos=True))
    running = llm.engine.submit(request)
    wait_until(lambda: llm.engine.stats().running == 1)
    waiting = llm.engine.submit(request)
    try:
        yield
    finally:
        for handle in (running, waiting):
            handle.cancel()
            list(handle)
