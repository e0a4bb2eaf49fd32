"""Bodies and heads that are too long, too slow, too deep: over real sockets."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.server.ops.json_shape import problem_of
from tests.server.ops.inner import Running, running

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server with narrow bounds."""
    with running(
        max_body=1000,
        max_json_depth=8,
        max_json_items=50,
        body_timeout=0.3,
        header_timeout=0.5,
        max_headers=20,
        max_header_bytes=2000,
    ) as server:
        yield server


def _is_cut_off(connection: socket.socket, piece: bytes, times: int, pause: float = 0.0) -> bool:
    """Whether the other end closes before all of it has been sent."""
    try:
        for _ in range(times):
            connection.sendall(piece)
            time.sleep(pause)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_a_body_up_to_the_bound_is_taken_and_one_byte_more_is_not(small: Running) -> None:
    with httpx.Client(base_url=small.url) as client:
        assert client.post("/x", content=b" " * 1000).json()["bytes"] == 1000
        answer = client.post("/x", content=b" " * 1001)
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]["message"]


def test_a_chunked_body_is_counted_as_it_comes(small: Running) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        yield from (b" " * 100 for _ in range(count))

    assert httpx.post(f"{small.url}/x", content=pieces(10)).json()["bytes"] == 1000
    assert httpx.post(f"{small.url}/x", content=pieces(11)).status_code == 413


def test_whoever_sends_a_huge_body_still_reads_the_answer(small: Running) -> None:
    answer = httpx.post(f"{small.url}/x", content=b" " * 5_000_000)
    assert answer.status_code == 413


def test_a_body_without_end_is_cut_off(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        chunk = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
        assert _is_cut_off(connection, chunk, 3000)


@pytest.mark.parametrize("length", [b"99999999999999999999999999", b"1001"])
def test_a_body_that_is_announced_as_too_long_is_not_waited_for(small: Running, length: bytes) -> None:
    answer = small.raw(POST + b"expect: 100-continue\r\ncontent-length: " + length + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    assert b"100 Continue" not in answer


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"10, 11", b"\xb2"])
def test_a_length_that_is_no_number_is_refused(small: Running, length: bytes) -> None:
    answer = small.raw(POST + b"content-length: " + length + b"\r\n\r\n0123456789abcdef")
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_two_lengths_are_refused(small: Running) -> None:
    answer = small.raw(POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_body_that_comes_too_slowly_is_refused(small: Running) -> None:
    answer = small.raw(POST + b"content-length: 10\r\n\r\n", b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "slow_body"


def test_a_packed_body_is_refused(small: Running) -> None:
    bomb = gzip.compress(b" " * 10**6)
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        answer = httpx.post(f"{small.url}/x", content=bomb[:900], headers={"content-encoding": encoding})
        assert answer.status_code == 415
    plain = httpx.post(f"{small.url}/x", content=b"{}", headers={"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 8 + b"]" * 8, 200),
        (b"[" * 9 + b"]" * 9, 400),
        (b"[" * 500, 400),
        (b'{"a":' * 9 + b"1" + b"}" * 9, 400),
        (b'{"text": "' + b"[" * 500 + b'"}', 200),
        (b'{"text": "\\"' + b"[" * 500 + b'"}', 200),
        (b'{"text": "\\\\", "x": ' + b"[" * 9 + b"]" * 9 + b"}", 400),
        (b"[" + b"1," * 100 + b"1]", 400),
        (b'{"text": "' + b"," * 500 + b'"}', 200),
    ],
)
def test_a_body_is_looked_at_before_anything_parses_it(small: Running, body: bytes, status: int) -> None:
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        assert (
            httpx.post(f"{small.url}/x", content=body, headers={"content-type": kind}).status_code == status
        )


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"x-%d: 1\r\n" % i for i in range(30)),
        b"x-long: " + b"a" * 3000 + b"\r\n",
        b"x-" + b"a" * 3000 + b": 1\r\n",
        b"".join(b"x-%d: %s\r\n" % (i, b"a" * 300) for i in range(10)),
    ],
)
def test_a_head_that_is_too_long_is_refused(small: Running, head: bytes) -> None:
    answer = small.raw(b"GET /x HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_header_without_end_is_refused_while_it_comes(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nhost: x\r\nx-endless: ")
        assert _is_cut_off(connection, b"a" * 1000, 1000, pause=0.0005)


def test_trailers_without_end_are_refused(small: Running) -> None:
    head = POST + b"transfer-encoding: chunked\r\n\r\n"
    trailers = b"".join(b"x-%d: %s\r\n" % (i, b"a" * 300) for i in range(50))
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        connection.sendall(head + b"0\r\n" + trailers)
        assert connection.recv(65536)[:12] in (b"HTTP/1.1 431", b"")


def test_a_long_address_is_refused(small: Running) -> None:
    assert small.raw(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 414 ")


@pytest.mark.parametrize("begun", [b"", b"GET /x HT", b"GET /x HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(small: Running, begun: bytes) -> None:
    assert small.raw(begun).startswith(b"HTTP/1.1 408 ")


def test_what_is_no_http_is_refused_in_words(small: Running) -> None:
    answer = small.raw(b"\x16\x03\x01\x00 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"no valid HTTP request" in answer


def test_one_connection_too_many_is_told_so() -> None:
    with running(max_connections=2) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(2)]
        try:
            for connection in held:
                connection.sendall(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            answer = server.raw()
        finally:
            for connection in held:
                connection.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in answer
    assert b"x-should-retry: true\r\n" in answer


def test_requests_in_a_row_share_a_connection(small: Running) -> None:
    one = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert small.raw(one + one + last).count(b"HTTP/1.1 200 OK") == 3


values = st.recursive(
    st.none() | st.integers() | st.text(st.characters() | st.sampled_from('\\"[]{},'), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=30,
)


def _depth(value: object) -> int:
    if not isinstance(value, list | dict):
        return 0
    members = list(value.values()) if isinstance(value, dict) else value
    return 1 + max((_depth(member) for member in members), default=0)


@given(values, st.integers(0, 6), st.booleans())
def test_the_depth_that_is_seen_is_the_depth_that_is_parsed(
    value: object, bound: int, ascii_only: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert (problem_of(text, bound, 10**6) is not None) == (_depth(value) > bound)


@given(st.integers(0, 300), st.integers(1, 9))
def test_a_string_across_two_chunks_stays_a_string(offset: int, slashes: int) -> None:
    padding = 2**17 - 150 + offset
    even = slashes - slashes % 2
    text = b'["' + b"a" * padding + b"\\" * even + b'", "' + b"\\" * (even + 1) + b'"' + b"[" * 99 + b'"]'
    json.loads(text)
    assert problem_of(text, 2, 10**6) is None
    assert problem_of(text.replace(b"[" * 99, b'",[[[],1],1],"'), 2, 10**6) is not None
