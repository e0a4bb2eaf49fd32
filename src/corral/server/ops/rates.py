"""How much one client may ask: requests at once, and requests in a minute."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.server.errors import ApiError
from corral.server.ops.asgi import local_path, refuse
from corral.server.ops.auth import IsPage, no_page
from corral.server.ops.record import Exchange, exchange_of

_MOST_CLIENTS = 10_000  # remembered; those that have been still for longest are forgotten first


@dataclass
class _Client:
    tokens: float
    filled: float
    running: int = 0


class RateLimits:
    """Bounds each API key, or each address where there are no keys. What only looks (GET) is free.

    `requests_per_minute` is a bucket of as many requests that fills evenly. Answers say in `x-ratelimit-*`
    headers, in the form of OpenAI's, what is left.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests_per_minute: int | None = None,
        max_concurrent: int | None = None,
        is_page: IsPage = no_page,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_page = is_page
        self._app, self._rate, self._most, self._now = app, requests_per_minute, max_concurrent, now
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope) if scope["type"] == "http" else None
        if exchange is None or self._is_free(exchange, scope):
            await self._app(scope, receive, send)
            return
        client = self._client(f"key {exchange.key}" if exchange.key else f"from {exchange.client}")
        error, reason = self._take(client, exchange)
        if error is not None:
            await refuse(scope, receive, send, error, reason)
            return
        client.running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            client.running -= 1

    def _is_free(self, exchange: Exchange, scope: Scope) -> bool:
        return exchange.method in ("GET", "HEAD", "OPTIONS") or self._is_page(
            exchange.method, local_path(scope)
        )

    def _client(self, name: str) -> _Client:
        """What is known of a client, filled up to now."""
        now = self._now()
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(float(self._rate or 0), now)
            self._forget()
        self._clients.move_to_end(name)
        if self._rate is not None:
            gained = (now - client.filled) * self._rate / 60
            client.tokens, client.filled = min(float(self._rate), client.tokens + gained), now
        return client

    def _take(self, client: _Client, exchange: Exchange) -> tuple[ApiError | None, str]:
        """Takes a request out of the client's share; says why it cannot."""
        if self._most is not None and client.running >= self._most:
            sentence = f"{client.running} requests of yours run already, the most at once; let one end first"
            return ApiError(429, sentence, code="rate_limit_exceeded", retry_after=1), "key_concurrency"
        if self._rate is None:
            return None, ""
        wait = (1 - client.tokens) * 60 / self._rate
        if wait <= 0:
            client.tokens -= 1
        left, full = int(client.tokens), (self._rate - client.tokens) * 60 / self._rate
        exchange.headers += [
            (b"x-ratelimit-limit-requests", b"%d" % self._rate),
            (b"x-ratelimit-remaining-requests", b"%d" % left),
            (b"x-ratelimit-reset-requests", _duration(full).encode()),
        ]
        if wait <= 0:
            return None, ""
        sentence = f"{self._rate} requests in a minute are the most; ask again in {math.ceil(wait)} s"
        return ApiError(429, sentence, code="rate_limit_exceeded", retry_after=wait), "key_rate"

    def _forget(self) -> None:
        """Forgets whoever has been still for longest, unless a request of theirs runs."""
        while len(self._clients) > _MOST_CLIENTS:
            idle = next((name for name, client in self._clients.items() if not client.running), None)
            if idle is None:
                return
            del self._clients[idle]


def _duration(seconds: float) -> str:
    """Like 6m0s or 1.5s, as OpenAI writes it."""
    minutes, rest = divmod(round(max(0.0, seconds), 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
