"""An httpx transport that calls an ASGI application in this process and streams what it answers.

`httpx.ASGITransport` collects the whole body before it answers; here each piece is handed on as it comes, and
closing the response tells the application that its client has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Scope


class AsgiTransport(httpx.AsyncBaseTransport):
    """Requests to `app`, with all its middleware, in the event loop that asks.

    Args:
        app: the application, as the HTTP server would call it.
        client: the address that the application sees; it counts for limits and logs.
    """

    def __init__(self, app: ASGIApp, client: tuple[str, int]) -> None:
        self._app = app
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        exchange = _Exchange(body)
        exchange.start(self._app, self._scope(request))
        start = await exchange.messages.get()
        if start is None:
            await exchange.close()
            raise httpx.RemoteProtocolError("the application ended without an answer")
        return httpx.Response(start["status"], headers=start["headers"], stream=_Body(exchange))

    def _scope(self, request: httpx.Request) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": self._client,
            "server": (request.url.host, request.url.port),
            "state": {},
        }


class _Exchange:
    """One request under way: the application in a task of its own, its messages in a short queue."""

    def __init__(self, body: bytes) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=64)
        self._body: bytes | None = body
        self._left = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, app: ASGIApp, scope: Scope) -> None:
        self._task = asyncio.create_task(self._run(app, scope))

    async def close(self) -> None:
        """Leave: the application hears of it, and is waited for."""
        self._left.set()
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=1)
            self._task.cancel()

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            if not self._left.is_set():
                await self.messages.put(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """Hand a message on; a reader who is slow makes the application wait, one who has left does not."""
        if self._left.is_set():
            return
        putting = asyncio.ensure_future(self.messages.put(message))
        leaving = asyncio.ensure_future(self._left.wait())
        await asyncio.wait([putting, leaving], return_when=asyncio.FIRST_COMPLETED)
        for waiting in (putting, leaving):
            waiting.cancel()


class _Body(httpx.AsyncByteStream):
    """The pieces of an answer's body."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._exchange.messages.get()) is not None:
            piece: Any = message.get("body", b"")
            if piece:
                yield piece
            if not message.get("more_body", False):
                return
        raise httpx.RemoteProtocolError("the answer broke off")

    async def aclose(self) -> None:
        await self._exchange.close()
