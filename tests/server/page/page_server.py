"""The whole server with its page, in a thread of the tests' own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import Receive, Scope, Send

from corral.llm import LLM
from corral.server.app import build_app
from corral.server.ops.keys import ApiKey
from corral.server.ops.operations import Operations
from corral.server.ops.stack import wrap
from corral.server.page.guard import is_page_path
from corral.server.page.mount import mount_page
from corral.server.service import Service
from corral.server.settings import ServerSettings
from tests.server.processes import free_port


@dataclass(frozen=True)
class PageServer:
    """A server that runs. `base_url` has no slash at the end."""

    base_url: str
    service: Service

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, and no block of the cache is held."""
        return not self.service.num_running and not self.service.llm.engine.stats().blocks_used


@contextmanager
def page_server(llm: LLM, name: str, key: str | None = None) -> Iterator[PageServer]:
    """A model behind all of the server's pieces, and its page."""
    settings = ServerSettings(api_keys=(ApiKey.of("someone", key),) if key else ())
    operations = Operations(settings)
    service = Service(lambda: llm, [name], telemetry=operations)
    operations.watch(service)
    service.load()
    inner = build_app(service)

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        await outer(scope, receive, send)

    mount_page(inner, api=api)
    outer = wrap(inner, operations, service, is_page=is_page_path)
    port = free_port()
    config = uvicorn.Config(
        outer, port=port, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=1
    )
    server, started = uvicorn.Server(config), threading.Event()

    async def serve() -> None:
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="page-server")
    thread.start()
    started.wait()
    try:
        yield PageServer(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join()
        service.close()
        operations.close()
