"""A small application, and a real server around it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.llm import LLM
from corral.server.ops.listen import listen
from corral.server.ops.operations import Operations
from corral.server.ops.process import uvicorn_config
from corral.server.ops.stack import wrap
from corral.server.ops.tracing import Tracing
from corral.server.settings import ServerSettings


@dataclass
class Idle:
    """A service without a model."""

    state: Literal["loading", "ready", "draining"] = "ready"
    loaded: LLM | None = None


@dataclass
class Route:
    """What a router leaves in the scope."""

    path: str


@dataclass
class Inner:
    """Answers with what has reached it; `/slow` waits for `go_on`, `/fails` raises, `/busy` is 429."""

    seen: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.seen.append(f"{scope['method']} {scope['path']}")
        scope["route"] = Route(scope["path"])
        if scope["path"] == "/fails":
            raise RuntimeError("a secret from /home/someone")
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        while scope["path"] == "/slow" and not self.go_on.is_set():
            await asyncio.sleep(0.005)
        status = 429 if scope["path"] == "/busy" else 200
        text = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
        headers += [(b"retry-after", b"1")] if status == 429 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})


@dataclass
class Running:
    """A server on loopback."""

    port: int
    inner: Inner
    service: Idle
    operations: Operations

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def raw(self, *pieces: bytes) -> bytes:
        """Sends bytes as they are, and gives what comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for piece in pieces:
                connection.sendall(piece)
            answer = b""
            while received := connection.recv(65536):
                answer += received
            return answer


@contextmanager
def running(*, tracing: Tracing | None = None, is_page: Any = None, **given: Any) -> Iterator[Running]:
    """The inner application, behind the whole stack, on a free port."""
    settings = ServerSettings(**{"port": 0, "header_timeout": 5.0, **given})
    operations, service, inner = Operations(settings, tracing=tracing), Idle(), Inner()
    operations.watch(service)
    app: ASGIApp = wrap(inner, operations, service, **({} if is_page is None else {"is_page": is_page}))
    bound = listen(settings)
    server = _Server(uvicorn_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert server.is_up.wait(10)
        yield Running(bound.getsockname()[1], inner, service, operations)
    finally:
        inner.go_on.set()
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()
