"""Clients that leave: what they asked for ends, and its memory is free."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from corral.model.presets import DEFAULT_MODEL
from corral.server.service import Service
from tests.server.live_server import LiveServer

STORY = [{"role": "user", "content": "Write a very long story about the sea, in many chapters."}]
LONG = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "ignore_eos": True}


def post(server: LiveServer, path: str, fields: dict[str, Any]) -> socket.socket:
    """A request on its way, as a raw connection."""
    host, port = server.base_url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return connection


def wait_for(holds: Callable[[], bool]) -> None:
    """Waits until something holds; the test's own time limit is the bound."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.005)


def is_idle(service: Service) -> bool:
    stats = service.llm.engine.stats()
    return not (stats.running or stats.waiting or stats.blocks_used or service.num_running)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", LONG),
        ("/v1/completions", {"prompt": ["Count.", "Sing."], "max_tokens": 4000, "ignore_eos": True}),
        ("/v1/messages", {"model": DEFAULT_MODEL, "messages": STORY, "max_tokens": 4000, "temperature": 1.0}),
    ],
    ids=["chat", "completions", "messages"],
)
def test_who_leaves_is_not_worked_for(server: LiveServer, path: str, fields: Any, stream: bool) -> None:
    engine = server.service.llm.engine
    wait_for(lambda: is_idle(server.service))
    with post(server, path, {**fields, "stream": stream}) as connection:
        wait_for(lambda: engine.stats().blocks_used > 0)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_for(lambda: is_idle(server.service))
    engine.check_integrity()


def test_who_leaves_while_waiting_is_never_worked_for(server: LiveServer) -> None:
    """More requests than run at once, and all of their clients leave."""
    engine = server.service.llm.engine
    connections = [post(server, "/v1/chat/completions", LONG) for _ in range(engine.config.max_num_seqs + 8)]
    wait_for(lambda: engine.stats().waiting > 0)
    for connection in connections:
        connection.close()
    wait_for(lambda: is_idle(server.service))


def test_a_reader_that_takes_nothing_holds_nothing_but_its_connection(server: LiveServer) -> None:
    fields = {**LONG, "max_tokens": 300, "stream": True, "logprobs": True, "top_logprobs": 20}
    with post(server, "/v1/chat/completions", fields):
        wait_for(lambda: server.service.llm.engine.stats().running > 0)
        wait_for(
            lambda: server.service.llm.engine.stats().blocks_used == 0
        )  # the engine does not wait for it
    wait_for(lambda: is_idle(server.service))


def test_no_task_is_left_behind(server: LiveServer) -> None:
    def tasks() -> int:
        async def count() -> int:
            return len(asyncio.all_tasks())

        return asyncio.run_coroutine_threadsafe(count(), server.loop).result()

    wait_for(lambda: is_idle(server.service))
    before = tasks()
    for number in range(30):
        stream = number % 3 > 0
        with post(server, "/v1/chat/completions", {**LONG, "max_tokens": 8, "stream": stream}) as connection:
            if number % 2:
                connection.recv(50)
    wait_for(lambda: is_idle(server.service))
    wait_for(lambda: tasks() <= before + 1)
