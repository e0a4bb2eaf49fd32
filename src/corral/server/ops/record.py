"""What is known of one HTTP exchange: filled in on its way through the server, told when it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_KEY = "corral.exchange"


@dataclass(eq=False, slots=True)
class Exchange:
    """A request to the server and what became of it. Times are in seconds on the monotonic clock.

    Attributes:
        id: told to the client as `x-request-id`.
        began: when its head had arrived.
        key: the name of the API key, None where there are none; `admin` says that it was an admin key.
        client: the address that it came from.
        headers: that its answer will carry.
        status: of the answer; 0 before it has begun.
        refused: why the server turned it away, in a word for the metrics.
        outputs, prompt_tokens, cached_tokens, completion_tokens, queued, first_token, finish_reasons, model:
            of what the engine ran for it, all requests together; `first_token` counts from `began`.
        left: the client went before the end.
        prompt: what was asked, where prompts are logged.
        span: its span, where traces are made.
    """

    id: str
    method: str
    path: str
    client: str = ""
    began: float = field(default_factory=time.monotonic)
    key: str | None = None
    admin: bool = False
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    status: int = 0
    refused: str | None = None
    model: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued: float | None = None
    first_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    left: bool = False
    prompt: str | None = None
    span: Any = None

    @property
    def seconds(self) -> float:
        """How long it has taken until now."""
        return time.monotonic() - self.began


def exchange_of(scope: Scope) -> Exchange | None:
    """The exchange of a request; None where the app runs without the server's stack."""
    found = scope.get("state", {}).get(_KEY)
    return found if isinstance(found, Exchange) else None


def put_exchange(scope: Scope, exchange: Exchange) -> None:
    """Makes it the exchange of a request, also for those that see only a copy of its scope."""
    scope.setdefault("state", {})[_KEY] = exchange


def route_of(scope: Scope) -> str:
    """The route that a request took, as its template; "none" where it reached none. There are few of them."""
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) and template else "none"
