"""A server from its start to its end: the port is open first, then the model loads; a signal drains it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from corral.llm import LLM
from corral.server.ops.operations import Operations
from corral.server.ops.protocol import bounded_protocol
from corral.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TO_SAY_SO = 3.0  # seconds that requests have for their last event, after the grace time
_TICK = 0.05


class Served(Protocol):
    """What is needed here of `corral.server.service.Service`."""

    @property
    def num_running(self) -> int: ...

    def load(self) -> LLM: ...

    def drain(self) -> None: ...

    def end_running(self, message: str) -> None: ...

    def close(self) -> None: ...


class ServerProcess:
    """Runs an application, and its service's model, until a signal comes.

    Args:
        app: with its stack around it.
        ready: told once the model has been loaded.

    SIGTERM and SIGINT drain: new requests are refused, those that run may end within `grace_seconds`, and
    what runs on then is told so. A second signal ends the process at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Served,
        operations: Operations,
        bound: socket.socket,
        ready: Callable[[LLM], None],
    ) -> None:
        self._service, self._operations, self._bound, self._ready = service, operations, bound, ready
        self._settings = operations.settings
        self._server = _Server(uvicorn_config(app, self._settings))
        self._loading: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._draining: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Serves until the end.

        Raises:
            CorralError: the model cannot be loaded.
        """
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(self._run())
        if self._failure is not None:
            raise self._failure

    @property
    def still_loads(self) -> bool:
        """Whether a thread that cannot be stopped is still loading the model."""
        return self._loading is not None and self._loading.is_alive()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._bound]))
        try:
            self._loading = threading.Thread(target=self._load, args=(loop,), name="corral-load", daemon=True)
            self._loading.start()
            await serving
        finally:
            if not self.still_loads:
                await asyncio.to_thread(self._service.close)
            await asyncio.to_thread(self._operations.close)

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        """Loads the model, in a thread."""
        try:
            llm = self._service.load()
        except BaseException as error:
            self._tell(loop, self._fail, error)
        else:
            self._tell(loop, self._ready, llm)

    def _tell(self, loop: asyncio.AbstractEventLoop, call: Callable[..., object], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(call, what)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._service.drain()
        self._server.should_exit = True

    def _on_signal(self, number: int) -> None:
        if self._draining is not None:
            sys.stderr.flush()
            os._exit(128 + number)
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        self._service.drain()
        if not await self._idle_within(self._settings.grace_seconds):
            logger.warning("%d requests did not end within the grace time", self._operations.working)
            self._service.end_running("the server is shutting down")
            await self._idle_within(_TO_SAY_SO)
        self._server.should_exit = True

    async def _idle_within(self, seconds: float) -> bool:
        """Whether all requests have ended within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._operations.working or self._service.num_running:
                    await asyncio.sleep(_TICK)
        return not (self._operations.working or self._service.num_running)


def uvicorn_config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn runs an application; the socket is already bound."""
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        root_path=settings.root_path,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # it goes to loop.call_later
        timeout_graceful_shutdown=1,
    )


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
