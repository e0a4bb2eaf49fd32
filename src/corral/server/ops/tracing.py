"""A span for each request, by OpenTelemetry's conventions for generative AI.

Its packages are imported only where traces are asked for.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from starlette.types import Scope

from corral.errors import ConfigError
from corral.server.ops.record import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_INSTALL = "install it with: pip install 'corral[otel]'"
_TEXT_ROUTES = ("/v1/completions", "/generate", "/generate_stream", "/")


class Tracing:
    """Makes spans in a provider of its own; a request's `traceparent` header is continued."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("corral")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str, service_name: str) -> Tracing:
        """Traces that go to a collector by OTLP over HTTP: to `/v1/traces`, unless the address has a path.

        Raises:
            ConfigError: the packages are not installed.
        """
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
            raise ConfigError(f"otlp_endpoint needs OpenTelemetry; {_INSTALL}")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ConfigError(f"otlp_endpoint needs the exporter of OpenTelemetry; {_INSTALL}") from None
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        parts = urlsplit(endpoint)
        address = urlunsplit(parts._replace(path="/v1/traces")) if parts.path in ("", "/") else endpoint
        provider = TracerProvider(
            resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=5)))
        return cls(provider)

    def begin(self, exchange: Exchange, scope: Scope) -> None:
        """Begins the span of a request."""
        from opentelemetry.trace import SpanKind

        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        exchange.span = self._tracer.start_span(
            f"{exchange.method} {exchange.path[:100]}",
            context=self._propagator.extract(carrier) if carrier else None,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": exchange.method, "corral.request.id": exchange.id},
        )

    def end(self, exchange: Exchange, route: str) -> None:
        """Ends it, with all that is known of the request."""
        from opentelemetry.trace import Status, StatusCode

        span = exchange.span
        if span is None:
            return
        operation = "text_completion" if route in _TEXT_ROUTES else "chat"
        span.update_name(f"{operation} {exchange.model}" if exchange.model else f"{exchange.method} {route}")
        span.set_attributes(_attributes(exchange, route, operation))
        if exchange.status >= 500 or "error" in exchange.finish_reasons:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Sends what is left, and ends."""
        self._provider.force_flush(5000)
        self._provider.shutdown()


def _attributes(exchange: Exchange, route: str, operation: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "http.route": route,
        "http.response.status_code": exchange.status,
        "corral.client_left": exchange.left or None,
        "corral.refused": exchange.refused,
        "enduser.id": exchange.key,
    }
    if exchange.model is not None:
        told |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "corral",
            "gen_ai.request.model": exchange.model,
            "gen_ai.response.model": exchange.model,
            "gen_ai.response.finish_reasons": tuple(exchange.finish_reasons),
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": exchange.cached_tokens,
            "gen_ai.usage.output_tokens": exchange.completion_tokens,
            "gen_ai.response.time_to_first_chunk": exchange.first_token,
            "gen_ai.latency.time_in_queue": exchange.queued,
            "gen_ai.latency.e2e": exchange.seconds,
        }
    return {name: value for name, value in told.items() if value is not None}
