"""Request ids, the request log, and what an answer never shows."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from corral.engine.events import Finished, Started, Timings, Tokens, Usage
from corral.engine.request import Request
from corral.server.ops.keys import ApiKey
from corral.server.ops.operations import Operations
from corral.server.ops.record import Exchange, exchange_of, put_exchange
from corral.server.ops.request_log import logging_to
from corral.server.settings import ServerSettings
from tests.server.ops.inner import running


@contextmanager
def _logged(log_format: str) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with logging_to(stream, log_format):
        yield stream


@pytest.mark.parametrize("sent", ["abc", "a.b_c:d-1", "x" * 128])
def test_the_client_s_request_id_is_kept(sent: str) -> None:
    with running() as server:
        answer = httpx.get(f"{server.url}/x", headers={"x-request-id": sent})
    assert answer.headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "a\tb", "<script>", "a\u00e9", "a;b"])
def test_any_other_id_is_replaced(sent: str) -> None:
    with running() as server:
        answer = httpx.get(f"{server.url}/x", headers=[(b"x-request-id", sent.encode("latin-1"))])
        several = httpx.get(f"{server.url}/x", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    for one in (answer, several):
        assert one.headers["x-request-id"].startswith("req-")
        assert len(one.headers["x-request-id"]) == 36


def test_no_header_can_be_smuggled_into_an_answer() -> None:
    with running() as server:
        line = b"GET /x%0d%0ax-evil:%201 HTTP/1.1\r\n"
        answer = server.raw(line + b"host: x\r\nx-request-id: a\rx-evil: 1\r\nconnection: close\r\n\r\n")
    assert b"x-evil" not in answer.partition(b"\r\n\r\n")[0]


def test_refused_requests_have_ids_too() -> None:
    with running(api_keys=(ApiKey.of("a", "sk-a"),)) as server:
        assert httpx.get(f"{server.url}/x").headers["x-request-id"].startswith("req-")


def test_an_error_shows_nothing_of_the_inside() -> None:
    with running() as server, _logged("text") as stream:
        answer = httpx.get(f"{server.url}/fails")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "/home" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"] in stream.getvalue()


def test_each_request_is_one_line_of_json() -> None:
    with (
        running(api_keys=(ApiKey.of("alice", "sk-a"),), log_format="json") as server,
        _logged("json") as stream,
    ):
        headers = {"x-api-key": "sk-a", "x-request-id": "r1"}
        httpx.post(f"{server.url}/v1/chat/completions", json={"secret": 1}, headers=headers)
        httpx.get(f"{server.url}/x%0a%22%7bforged", headers={"x-api-key": "wrong-key"})
        for _ in range(3):
            httpx.get(f"{server.url}/health")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["method"], line["status"]) for line in lines] == [("POST", 200), ("GET", 401)]
    assert lines[0] | {"id": "r1", "key": "alice", "route": "/v1/chat/completions"} == lines[0]
    assert lines[0]["total_ms"] >= 0
    assert lines[1]["refused"] == "no_key"
    assert lines[1]["path"] == '/x\n"{forged'
    for word in ("sk-a", "wrong-key", "secret"):
        assert word not in stream.getvalue()


def test_each_request_is_one_line_of_text() -> None:
    with running() as server, _logged("text") as stream:
        httpx.get(f"{server.url}/x%0aGET%20forged", headers={"x-request-id": "r1"})
    (line,) = stream.getvalue().splitlines()
    assert ' r1 GET "/x\\nGET forged" 200 ' in line


def _run(operations: Operations) -> Exchange:
    """A request of two outputs, as the engine tells it."""
    scope: dict[str, object] = {}
    exchange = Exchange("r1", "POST", "/v1/completions")
    put_exchange(scope, exchange)
    assert exchange_of(scope) is exchange
    observer = operations.begin(scope, Request((1, 2, 3)), "tiny")
    observer.event(Started(3, 2))
    observer.event(Tokens(0, (5,), "a"))
    observer.event(Tokens(0, (6, 7), "b"))
    observer.event(Finished(0, "stop", Usage(3, 2, 3), Timings(0.25, 0.5, 0.75)))
    observer.left()
    return exchange


def test_a_line_tells_what_the_engine_did() -> None:
    operations = Operations(ServerSettings(log_format="json"))
    with _logged("json") as stream:
        exchange = _run(operations)
        operations.begin_exchange(exchange, {"headers": []}, quiet=False)
        operations.end_exchange(exchange, "/v1/completions", quiet=False)
    line = json.loads(stream.getvalue())
    told = {
        "model": "tiny",
        "prompt_tokens": 3,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "queue_ms": 250.0,
    }
    assert line | told | {"finish_reason": "stop,cancelled", "client_left": True} == line
    assert line["first_token_ms"] >= 0
    assert "prompt" not in line


def test_other_loggers_are_heard_and_left_as_they_were() -> None:
    before = logging.getLogger().level, logging.getLogger().handlers[:]
    with _logged("json") as stream:
        logging.getLogger("corral.engine.core").warning("a step of %d sequences failed", 2)
        logging.getLogger("somebody.else").info("chatter")
    assert (logging.getLogger().level, logging.getLogger().handlers) == before
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert line["message"] == "a step of 2 sequences failed"
    assert line["level"] == "WARNING"


def test_a_stream_that_nobody_reads_holds_up_nothing() -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with logging_to(Stuck(), "text"), running() as server:
        assert httpx.get(f"{server.url}/x").status_code == 200
