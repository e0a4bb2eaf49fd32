"""Servers in threads of the tests' own process, on loopback, so that tests see the engine behind them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from corral.llm import LLM
from corral.server.app import build_app
from corral.server.clouds import NO_VERTEX, Vertex
from corral.server.service import Service
from tests.server.processes import free_port


@dataclass(frozen=True)
class LiveServer:
    """A server that runs.

    Attributes:
        base_url: without a slash at the end.
        service: what is behind the routes.
        loop: the event loop that answers.
    """

    base_url: str
    service: Service
    loop: asyncio.AbstractEventLoop


@contextmanager
def live_server(
    llm: LLM, name: str, *, vertex: Vertex = NO_VERTEX, adapters_dir: Path | None = None
) -> Iterator[LiveServer]:
    """A model behind HTTP, without the pieces around it. At the end nothing may be left in use."""
    service = Service(lambda: llm, [name], adapters_dir=adapters_dir)
    service.load()
    try:
        with serving_in_thread(build_app(service, vertex)) as (base_url, loop):
            yield LiveServer(base_url, service, loop)
            llm.engine.check_integrity()
    finally:
        service.close()


@contextmanager
def serving_in_thread(app: ASGIApp, **options: Any) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """An application behind uvicorn with these options: where it answers, and its event loop."""
    port = free_port()
    config = uvicorn.Config(app, port=port, log_level="warning", access_log=False, ws="none", **options)
    server, started, loops = uvicorn.Server(config), threading.Event(), []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="test-server")
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{port}", loops[0]
    finally:
        server.should_exit = True
        thread.join()
