"""Request bodies: how long, how slow, how deep they may be, before anything parses them."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.server.errors import ApiError
from corral.server.ops.asgi import has_body, header, refuse, replay
from corral.server.ops.json_shape import problem_of
from corral.server.settings import ServerSettings

_SCAN_IN_THREAD = 2**16  # bytes; a scan of more may take milliseconds


class BodyLimits:
    """Reads a body whole, within bounds, and hands it on in one piece."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except _Refused as refused:
            await refuse(scope, refused.rest, send, refused.error, refused.reason)
            return
        problem = await self._problem(body)
        if problem is not None:
            error = ApiError(400, problem, code="json_shape")
            await refuse(scope, replay(b"", receive), send, error, "json_shape")
            return
        if body is not None:
            await self._app(scope, replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client has gone before its end."""
        most, length = self._settings.max_body, header(scope, b"content-length")
        encoding = header(scope, b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            shown = encoding.decode("latin-1")[:40]
            raise _Refused(415, f"the body is encoded as {shown!r}; send it plain", "encoded_body", receive)
        if length is not None and length.isdigit() and (len(length) > 18 or int(length) > most):
            raise self._too_large(receive)
        pieces: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    pieces.append(message.get("body", b""))
                    num_bytes += len(pieces[-1])
                    is_last = not message.get("more_body", False)
                    if num_bytes > most:
                        raise self._too_large(replay(b"", receive) if is_last else receive)
                    if is_last:
                        return b"".join(pieces)
        except TimeoutError:
            bound = self._settings.body_timeout
            raise _Refused(408, f"the body did not arrive within {bound:g} s", "slow_body", None) from None

    async def _problem(self, body: bytes | None) -> str | None:
        """What is wrong with the shape of a body, if anything is."""
        if not body:
            return None
        bounds = self._settings.max_json_depth, self._settings.max_json_items
        if len(body) < _SCAN_IN_THREAD:
            return problem_of(body, *bounds)
        return await asyncio.to_thread(problem_of, body, *bounds)

    def _too_large(self, rest: Receive) -> _Refused:
        sentence = f"the body is larger than {self._settings.max_body} bytes, which this server takes at most"
        return _Refused(413, sentence, "large_body", rest)


class _Refused(Exception):
    """A body that is not taken; `rest` gives what may still come of it."""

    def __init__(self, status: int, message: str, reason: str, rest: Receive | None) -> None:
        super().__init__(message)
        self.error, self.reason, self.rest = ApiError(status, message, code=reason), reason, rest
