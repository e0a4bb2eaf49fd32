"""How metrics, traces and logs learn what becomes of a request."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Scope

from corral.engine.events import Event
from corral.engine.request import Request


class Observer(Protocol):
    """Is told about one request that the engine has taken on, in the event loop."""

    def event(self, event: Event) -> None:
        """The engine has said something; called for every token."""

    def left(self) -> None:
        """The client has gone before the last event."""


class Telemetry(Protocol):
    """Begins to watch requests."""

    def begin(self, scope: Scope, request: Request, model: str) -> Observer:
        """A request of the HTTP exchange `scope` has been taken on for a model or an adapter."""


class _NoObserver:
    def event(self, event: Event) -> None: ...

    def left(self) -> None: ...


class NoTelemetry:
    """Telemetry that tells nobody."""

    def begin(self, scope: Scope, request: Request, model: str) -> Observer:
        return _NoObserver()
