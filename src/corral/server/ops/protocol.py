"""Bounds of a connection and of a request's head: what uvicorn's own protocol takes without end."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from corral.server.errors import ApiError, openai_body
from corral.server.settings import ServerSettings
from corral.server.wire import dumps

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
    _refusal: ApiError | None = None
    _patience: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.bounds.max_connections
        if len(self.connections) > most:
            sentence = f"{most} connections are open, the most that this server takes"
            self._answer(ApiError(503, sentence, retry_after=1))
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
                self._answer(self._too_long())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._patience is None:
            self._wait()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _LONGEST_URL:
            self._refuse(ApiError(414, f"the address is longer than {_LONGEST_URL} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes behind the body is counted, and dropped
            super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if len(self.headers) > self.bounds.max_headers:
            self._refuse(ApiError(431, f"the request has more than {self.bounds.max_headers} headers"))
        if self._head_bytes > self.bounds.max_header_bytes:
            self._refuse(self._too_long())

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._wait_no_more()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called where the parser gives up: also when one of the bounds made it."""
        self._answer(self._refusal or ApiError(400, "this is no valid HTTP request"))

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        raise error  # which the parser passes on as an error of its own

    def _too_long(self) -> ApiError:
        most = self.bounds.max_header_bytes
        return ApiError(431, f"the headers are longer than {most} bytes together")

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.bounds.header_timeout, self._late)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _late(self) -> None:
        self._patience = None
        if not self.transport.is_closing():
            seconds = self.bounds.header_timeout
            self._answer(ApiError(408, f"the request's head did not arrive within {seconds:g} s"))

    def _answer(self, error: ApiError) -> None:
        """Answers without any request, and closes."""
        self._wait_no_more()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # in the middle of an answer there is no place for another
            return
        body = dumps(openai_body(error)).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **error.headers,
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
