"""The outermost piece: gives each request its id, and tells what became of it."""

from __future__ import annotations

import logging
import math
import re
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.server.errors import ApiError
from corral.server.ops.asgi import header, local_path, refuse
from corral.server.ops.auth import METRICS, OPEN
from corral.server.ops.operations import Operations
from corral.server.ops.record import Exchange, put_exchange, route_of

logger = logging.getLogger(__name__)

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# Asked every few seconds by machines: no line in the log where all is well.
_PROBES = frozenset((*OPEN, METRICS))


class Exchanges:
    """Begins an `Exchange` for each request; logs, counts and traces it when it is over.

    An id that the client sends as `x-request-id` is kept where it has the form of one.
    """

    def __init__(self, app: ASGIApp, operations: Operations) -> None:
        self._app, self._operations = app, operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        operations = self._operations
        exchange = _begin(scope)
        put_exchange(scope, exchange)
        quiet = local_path(scope) in _PROBES
        operations.begin_exchange(exchange, scope, quiet=quiet)
        started = _Started(operations, exchange, send)
        try:
            await self._app(scope, receive, started)
        except Exception:
            logger.exception("request %s failed", exchange.id)
            if not exchange.status:
                failed = ApiError(500, "the server failed; its log says why", code="internal_error")
                await refuse(scope, receive, started, failed, "internal_error")
        finally:
            operations.end_exchange(exchange, route_of(scope), quiet=quiet)


class _Started:
    """Sends, and adds to the head of the answer what the server's pieces have to say there."""

    __slots__ = ("_exchange", "_operations", "_send")

    def __init__(self, operations: Operations, exchange: Exchange, send: Send) -> None:
        self._operations, self._exchange, self._send = operations, exchange, send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._add(message)
        await self._send(message)

    def _add(self, message: Message) -> None:
        exchange = self._exchange
        exchange.status = message["status"]
        headers = [*message.get("headers", ()), (b"x-request-id", exchange.id.encode()), *exchange.headers]
        if exchange.status == 429 and exchange.refused is None:  # the engine's queue is full
            exchange.refused = "queue"
            wait = math.ceil(self._operations.seconds_to_wait())
            headers = [pair for pair in headers if pair[0].lower() != b"retry-after"]
            headers.append((b"retry-after", b"%d" % wait))
        message["headers"] = headers


def _begin(scope: Scope) -> Exchange:
    given = header(scope, b"x-request-id")
    name = given.decode() if given is not None and _ID.fullmatch(given) else f"req-{uuid4().hex}"
    client = scope.get("client")
    return Exchange(name, scope["method"], scope["path"], client[0] if client else "")
