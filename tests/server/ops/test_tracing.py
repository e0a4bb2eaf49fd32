"""Spans: what they say, whose children they are, and that a collector gets them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from corral.engine.events import Finished, Started, Timings, Tokens, Usage
from corral.engine.request import Request
from corral.errors import ConfigError
from corral.server.ops.operations import Operations
from corral.server.ops.record import Exchange, put_exchange
from corral.server.ops.tracing import Tracing
from corral.server.settings import ServerSettings
from tests.server.ops.inner import running

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def test_a_request_s_span_tells_what_the_engine_did(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    operations = Operations(ServerSettings(), tracing=tracing)
    scope: dict[str, object] = {"headers": [(b"traceparent", PARENT.encode())]}
    exchange = Exchange("r1", "POST", "/v1/chat/completions")
    put_exchange(scope, exchange)
    operations.begin_exchange(exchange, scope, quiet=False)
    observer = operations.begin(scope, Request((1, 2, 3)), "tiny")
    observer.event(Started(3, 2))
    observer.event(Tokens(0, (5,), "a"))
    observer.event(Finished(0, "stop", Usage(3, 2, 1), Timings(0.25, 0.5, 0.75)))
    exchange.status = 200
    operations.end_exchange(exchange, "/v1/chat/completions", quiet=False)
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat tiny"
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" in PARENT
    assert f"{span.parent.span_id:016x}" in PARENT
    told = dict(span.attributes or {})
    assert told["gen_ai.usage.input_tokens"] == 3
    assert told["gen_ai.usage.cache_read.input_tokens"] == 2
    assert told["gen_ai.usage.output_tokens"] == 1
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert told["gen_ai.request.model"] == "tiny"
    assert told["gen_ai.latency.time_in_queue"] == 0.25
    assert isinstance(told["gen_ai.response.time_to_first_chunk"], float)
    assert told["corral.request.id"] == "r1"


def test_every_request_but_probes_has_a_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with running(tracing=tracing) as server:
        httpx.get(f"{server.url}/x")
        httpx.get(f"{server.url}/health")
        httpx.get(f"{server.url}/fails", headers={"traceparent": "no traceparent"})
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["GET /x", "GET /fails"]
    assert [span.status.is_ok for span in spans] == [True, False]
    assert spans[1].parent is None


@contextmanager
def _collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """A collector on loopback, and what it has been sent."""
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_the_spans_by_the_time_the_server_ends() -> None:
    with _collector() as (endpoint, received):
        with running(otlp_endpoint=endpoint, otlp_service_name="my-corral") as server:
            httpx.get(f"{server.url}/x", headers={"traceparent": PARENT})
        server.operations.close()
    ((path, sent),) = received
    assert path == "/v1/traces"
    (resource,) = sent.resource_spans
    told = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert told["service.name"] == "my-corral"
    (span,) = resource.scope_spans[0].spans
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.name == "GET /x"


def test_a_collector_that_is_not_there_stops_nothing() -> None:
    with running(otlp_endpoint="http://127.0.0.1:9") as server:
        assert httpx.get(f"{server.url}/x").status_code == 200


def test_traces_without_their_packages_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"corral\[otel\]"):
        Operations(ServerSettings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        ServerSettings(otlp_endpoint=endpoint)
