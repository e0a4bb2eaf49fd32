"""Bounds of a connection and of a request's head: what uvicorn's own protocol takes without end."""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from corral.server.settings import ServerSettings

_PHRASES = {
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_LONGEST_URL = 8192


def bounded_protocol(settings: ServerSettings) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with the bounds of these settings."""

    class Bounded(BoundedProtocol):
        bounds = settings

    return Bounded


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a connection too many, and heads that are too long, have too many headers, or take too long."""

    bounds: ServerSettings
    _in_head = True
    _head_bytes = 0
    _refusal: tuple[int, str] | None = None
    _patience: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.bounds.max_connections
        if len(self.connections) > most:
            self._answer(
                503, f"{most} connections are open, the most that this server takes", "retry-after: 1\r\n"
            )
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.bounds.max_header_bytes + _LONGEST_URL:
                self._answer(431, self._too_long())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._patience is None:
            self._wait()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _LONGEST_URL:
            self._refuse(414, f"the address is longer than {_LONGEST_URL} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes behind the body is counted, and dropped
            super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if len(self.headers) > self.bounds.max_headers:
            self._refuse(431, f"the request has more than {self.bounds.max_headers} headers")
        if self._head_bytes > self.bounds.max_header_bytes:
            self._refuse(431, self._too_long())

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._wait_no_more()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called where the parser gives up: also when one of the bounds made it."""
        status, sentence = self._refusal or (400, "this is no valid HTTP request")
        self._answer(status, sentence)

    def _refuse(self, status: int, sentence: str) -> None:
        self._refusal = status, sentence
        raise ValueError(sentence)  # which the parser passes on as an error of its own

    def _too_long(self) -> str:
        return f"the headers are longer than {self.bounds.max_header_bytes} bytes together"

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.bounds.header_timeout, self._late)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _late(self) -> None:
        self._patience = None
        if not self.transport.is_closing():
            self._answer(408, f"the request's head did not arrive within {self.bounds.header_timeout:g} s")

    def _answer(self, status: int, sentence: str, more: str = "") -> None:
        """Answers without any request, and closes."""
        self._wait_no_more()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # in the middle of an answer there is no place for another
            return
        kind = "invalid_request_error" if status < 500 else "overloaded_error"
        error: dict[str, Any] = {"message": sentence, "type": kind, "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        phrase = _PHRASES.get(status, "Bad Request")
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{more}"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()
