"""Refuses what cannot be answered yet, or any more: while the model loads, and while the server drains."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.server.errors import draining, loading
from corral.server.ops.asgi import local_path, refuse
from corral.server.ops.auth import IsPage, no_page


class Stateful(Protocol):
    """What this piece needs of `corral.server.service.Service`."""

    @property
    def state(self) -> Literal["loading", "ready", "draining"]: ...


class Readiness:
    """Answers 503 unless the service is ready; the paths `always` and the page answer in every state."""

    def __init__(
        self, app: ASGIApp, service: Stateful, always: Collection[str], is_page: IsPage = no_page
    ) -> None:
        self._app, self._service, self._is_page = app, service, is_page
        self._always = frozenset(always)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._service.state
        if scope["type"] != "http" or state == "ready" or self._answers(scope):
            await self._app(scope, receive, send)
        else:
            error = loading() if state == "loading" else draining()
            await refuse(scope, receive, send, error, state)

    def _answers(self, scope: Scope) -> bool:
        path = local_path(scope)
        return path in self._always or self._is_page(scope["method"], path)
