"""Answers that are streams of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")
# What a route that may stream says of its answers in the server's description.
MAY_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent, so that no proxy closes the line
_COMMENT = b": still at work\n\n"


class EventStream(Response):
    """Sends pieces as they come.

    Args:
        pieces: whole events, as bytes. It tells errors itself, as events.
        leave: called when the stream is over, however it ends: the client has gone, or all was sent.
        headers: of the answer.
    """

    media_type = "text/event-stream"
    keep_alive = KEEP_ALIVE

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        leave: Callable[[], object],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._pieces, self._leave = pieces, leave
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(self._watch(receive, send))
        try:
            done, _ = await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching in done:
                self._leave()  # at once; what is being sent notices afterwards
        finally:
            self._leave()
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
        if sending in done:
            sending.result()  # raises what went wrong

    async def _send(self, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        async for piece in self._pieces:
            self._quiet = False
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Ends when the client has gone; sends comments in silence."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.keep_alive):
                    while (await receive())["type"] != "http.disconnect":
                        pass
                return
            if self._quiet:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            self._quiet = True


class ClientGoneError(Exception):
    """The client has gone before its answer."""


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Does the work, unless the client leaves before it is done: it is cancelled then.

    Raises:
        ClientGoneError: the client has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
