"""The pieces around an application, in their order."""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.server.ops.asgi import header, local_path
from corral.server.ops.auth import METRICS, OPEN, Authentication, IsPage, Paths, no_page
from corral.server.ops.body import BodyLimits
from corral.server.ops.exchanges import Exchanges
from corral.server.ops.keys import KeyRing
from corral.server.ops.operations import Operations
from corral.server.ops.rates import RateLimits
from corral.server.ops.readiness import Readiness, Stateful

_EXPOSED = (
    "x-request-id",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


def wrap(
    app: ASGIApp,
    operations: Operations,
    service: Stateful,
    *,
    open_paths: Collection[str] = (),
    is_page: IsPage = no_page,
) -> ASGIApp:
    """An application behind all the server's pieces; the first to see a request is put on last.

    A request gets its id; a web page's preflight is answered; the key is looked at, then the state of the
    server, what is left of the key's share, and the body. What `is_page` needs no key, and counts for nobody;
    `open_paths` need none either, and answer in every state, as /health does.
    """
    settings = operations.settings
    app = MetricsRoute(app, operations)
    app = BodyLimits(app, settings)
    app = RateLimits(
        app,
        requests_per_minute=settings.requests_per_minute,
        max_concurrent=settings.max_concurrent_per_key,
        is_page=is_page,
    )
    app = Readiness(app, service, {*OPEN, *open_paths, METRICS}, is_page)
    app = Authentication(
        app,
        KeyRing(settings.api_keys, settings.admin_keys),
        Paths({*OPEN, *open_paths}, is_page, metrics_open=settings.metrics_open),
    )
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
    return Exchanges(app, operations)


class MetricsRoute:
    """`GET /metrics`."""

    path = METRICS

    def __init__(self, app: ASGIApp, operations: Operations) -> None:
        self._app, self._metrics = app, operations.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["type"] == "http" and scope["method"] == "GET" and local_path(scope) == METRICS
        if not is_asked:
            await self._app(scope, receive, send)
            return
        scope["route"] = self
        body, content_type = self._metrics.answer((header(scope, b"accept") or b"").decode("latin-1"))
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
