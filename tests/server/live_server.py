"""Servers in threads of the tests' own process, on loopback, so that tests see the engine behind them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

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
    port = free_port()
    config = uvicorn.Config(
        build_app(service, vertex), port=port, log_level="warning", access_log=False, ws="none"
    )
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
        yield LiveServer(f"http://127.0.0.1:{port}", service, loops[0])
        llm.engine.check_integrity()
    finally:
        server.should_exit = True
        thread.join()
        service.close()
