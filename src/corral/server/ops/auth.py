"""Who may ask. Every route needs a key, but for a few that are named: what is not known is closed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.server.adapters import ADMIN_PATHS
from corral.server.errors import ApiError
from corral.server.ops.asgi import local_path, plain_path, refuse
from corral.server.ops.keys import KeyRing
from corral.server.ops.record import exchange_of

OPEN = frozenset({"/health", "/ready", "/ping"})
METRICS = "/metrics"

IsPage = Callable[[str, str], bool]
"""Whether a method and a path are of what a browser loads before it has a key."""


def no_page(_method: str, _path: str) -> bool:
    """There is no page."""
    return False


@dataclass(frozen=True)
class Paths:
    """Which paths need which key.

    Attributes:
        open: need none.
        is_page: neither does what this says.
        admin: need an admin key, and so does what lies below them.
        metrics_open: /metrics needs none; otherwise an admin key where there is one, else an API key.
    """

    open: Collection[str] = OPEN
    is_page: IsPage = no_page
    admin: Collection[str] = ADMIN_PATHS
    metrics_open: bool = False

    def is_open(self, method: str, path: str) -> bool:
        """Whether a path needs no key: taken by the letter, so that no other way of writing it passes."""
        if path in self.open or (self.metrics_open and path == METRICS):
            return True
        return self.is_page(method, path)

    def is_admin(self, path: str, *, has_admin: bool) -> bool:
        """Whether a path needs an admin key: also where it is written in another way."""
        plain = plain_path(path)
        if plain == METRICS:
            return has_admin
        return any(plain == one or plain.startswith(f"{one}/") for one in self.admin)


class Authentication:
    """Lets requests pass that present a key: `Authorization: Bearer KEY`, or `x-api-key: KEY`.

    Without any API key, the ordinary routes are open to all. The admin's routes never are.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, paths: Paths) -> None:
        self._app, self._keys, self._paths = app, keys, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is no such route
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._check(scope)
        if error is None:
            await self._app(scope, receive, send)
        else:
            reason = "no_key" if error.status == 401 else "not_admin"
            await refuse(scope, receive, send, error, reason)

    def _check(self, scope: Scope) -> ApiError | None:
        """What is wrong with a request's key; None where nothing is."""
        path, exchange = local_path(scope), exchange_of(scope)
        if self._paths.is_open(scope["method"], path):
            return None
        found = self._keys.find(_presented(scope))
        if found is not None and exchange is not None:
            exchange.key, exchange.admin = found[0].name, found[1]
        if self._paths.is_admin(path, has_admin=self._keys.has_admin):
            return self._check_admin(found is not None, found is not None and found[1])
        if found is None and self._keys.has_api:
            return _unauthorized("an API key of this server")
        return None

    def _check_admin(self, known: bool, is_admin: bool) -> ApiError | None:
        if is_admin:
            return None
        if not known and (self._keys.has_api or self._keys.has_admin):
            return _unauthorized("the admin key of this server")
        if self._keys.has_admin:
            sentence = "this needs the admin key; the key that was sent is an ordinary one"
        else:
            sentence = "this needs an admin key, and the server has none; start it with --admin-key-file"
        return ApiError(403, sentence, code="admin_key_required")


def _unauthorized(what: str) -> ApiError:
    message = f"send {what}, as `Authorization: Bearer KEY` or `x-api-key: KEY`; none, or another, was sent"
    return ApiError(401, message, code="invalid_api_key")


def _presented(scope: Scope) -> list[bytes]:
    """The keys that a request shows."""
    shown = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            shown.append(value.strip())
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                shown.append(key.strip())
    return shown[:4]
