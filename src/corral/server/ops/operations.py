"""What a server's pieces share: its metrics, its pace, its traces and its request log."""

from __future__ import annotations

import time
from typing import Protocol

from starlette.types import Scope

from corral.engine.request import Request
from corral.llm import LLM
from corral.server.ops.engine_metrics import EngineCollector
from corral.server.ops.metrics import Metrics
from corral.server.ops.pace import Pace
from corral.server.ops.record import Exchange, exchange_of
from corral.server.ops.request_log import RequestLog
from corral.server.ops.tracing import Tracing
from corral.server.ops.watching import Watcher
from corral.server.settings import ServerSettings


class Loaded(Protocol):
    """What is needed here of `corral.server.service.Service`."""

    @property
    def loaded(self) -> LLM | None: ...


class Operations:
    """The telemetry of one server: give it to its service, and let it `watch` that service then.

    Attributes:
        metrics: what Prometheus reads.
        working: requests in flight that may have work in the engine: a drain waits for them.

    Raises:
        ConfigError: traces are asked for, and the packages for them are not there.
    """

    def __init__(self, settings: ServerSettings, *, tracing: Tracing | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.names[0])
        self.pace = Pace()
        self.working = 0
        self._log = RequestLog(settings.log_format)
        self._tracing = tracing
        if tracing is None and settings.otlp_endpoint is not None:
            self._tracing = Tracing.to(settings.otlp_endpoint, settings.otlp_service_name)
        self._service: Loaded | None = None

    def watch(self, service: Loaded) -> None:
        """Reads the sums of this service's engine from now on."""
        self._service = service
        EngineCollector(self.metrics, lambda: service.loaded)

    def begin(self, scope: Scope, request: Request, model: str) -> Watcher:
        """Watches a request that the engine has taken on; see `corral.server.observer.Telemetry`."""
        exchange = exchange_of(scope)
        if exchange is not None:
            exchange.model = model
            if self.settings.log_prompts and exchange.prompt is None:
                exchange.prompt = self._text(request)
        began = time.monotonic() if exchange is None else exchange.began
        num_outputs = 1 if request.score is not None else request.params.n
        return Watcher(began, exchange, self.metrics.of(model), self.pace, num_outputs)

    def seconds_to_wait(self) -> float:
        """After how long a request that found the queue full may come again."""
        llm = None if self._service is None else self._service.loaded
        return self.pace.seconds_to_wait(0 if llm is None else llm.engine.stats().waiting)

    def begin_exchange(self, exchange: Exchange, scope: Scope, *, quiet: bool) -> None:
        """A request has arrived; a `quiet` one is a probe."""
        self.metrics.in_flight.inc()
        self.working += exchange.method == "POST"
        if self._tracing is not None and not quiet:
            self._tracing.begin(exchange, scope)

    def end_exchange(self, exchange: Exchange, route: str, *, quiet: bool) -> None:
        """A request has been answered, or its client is gone."""
        metrics, seconds = self.metrics, exchange.seconds
        metrics.in_flight.dec()
        self.working -= exchange.method == "POST"
        method = exchange.method if exchange.method in _METHODS else "other"
        metrics.http_requests.labels(route, method, str(exchange.status)).inc()
        metrics.http_seconds.labels(route).observe(seconds)
        if exchange.refused is not None:
            metrics.refused.labels(exchange.refused).inc()
        if exchange.left:
            metrics.left.inc()
        if self._tracing is not None:
            self._tracing.end(exchange, route)
        if not quiet or exchange.status not in (200, 503):
            self._log.write(exchange, route)

    def close(self) -> None:
        """Sends what traces are left."""
        if self._tracing is not None:
            self._tracing.close()

    def _text(self, request: Request) -> str | None:
        llm = None if self._service is None else self._service.loaded
        return None if llm is None else llm.tokenizer.decode(list(request.tokens))


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
