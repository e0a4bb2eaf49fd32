"""Refuses what cannot be answered yet, or any more: while the model loads, and while the server drains."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from corral.server.errors import ApiError
from corral.server.ops.asgi import App, Receive, Send, local_path, refuse
from corral.server.ops.auth import IsPage, no_page
from corral.server.ops.record import Scope


class Stateful(Protocol):
    """What this piece needs of `corral.server.service.Service`."""

    @property
    def state(self) -> Literal["loading", "ready", "draining"]: ...


class Readiness:
    """Answers 503 unless the service is ready; the paths `always` and the page answer in every state."""

    def __init__(
        self, app: App, service: Stateful, always: Collection[str], is_page: IsPage = no_page
    ) -> None:
        self._app, self._service, self._is_page = app, service, is_page
        self._always = frozenset(always)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._service.state
        if scope["type"] != "http" or state == "ready" or self._answers(scope):
            await self._app(scope, receive, send)
        elif state == "loading":
            error = ApiError(503, "the model is being loaded; try again soon", code="loading", retry_after=2)
            await refuse(scope, receive, send, error, "loading")
        else:
            message = "the server is shutting down; ask another one"
            error = ApiError(503, message, code="draining", retry_after=5)
            await refuse(scope, receive, send, error, "draining")

    def _answers(self, scope: Scope) -> bool:
        path = local_path(scope)
        return path in self._always or self._is_page(scope["method"], path)
