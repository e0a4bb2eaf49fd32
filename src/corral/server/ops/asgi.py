"""ASGI in small: headers, paths, and answers that are made before any route is reached."""

from __future__ import annotations

import asyncio
import json
import re
from urllib.parse import unquote

from starlette.types import Message, Receive, Scope, Send

from corral.server.errors import SHAPES, ApiError
from corral.server.ops.record import exchange_of

_SLASHES = re.compile(r"/{2,}")
_DISCARDED, _DISCARD_SECONDS = 2**26, 2.0  # of a body that nobody wants, read so that the answer gets through


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header that a request may have once; None where it has none, or several."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None


def local_path(scope: Scope) -> str:
    """The path of a request below the server's `root_path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def plain_path(path: str) -> str:
    """What others may read a path as: decoded again, in lower case, without dots and spare slashes."""
    for _ in range(4):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    parts: list[str] = []
    for part in _SLASHES.sub("/", path.replace("\\", "/").lower()).split("/"):
        name = part.split(";")[0].strip()
        if name == "..":
            parts = parts[:-1]
        elif name not in ("", "."):
            parts.append(name)
    return "/" + "/".join(parts)


async def refuse(
    scope: Scope,
    receive: Receive | None,
    send: Send,
    error: ApiError,
    reason: str,
) -> None:
    """Answers with an error, in the shape of the route that was meant; `reason` is for the metrics.

    What is left of the body is read and dropped first: a connection that is closed with bytes unread is
    reset, and the client would not see the answer. One that sends on and on is closed nevertheless, and so
    is one of which nothing more is to be read: where `receive` is None.
    """
    exchange = exchange_of(scope)
    if exchange is not None:
        exchange.refused = reason
    close = receive is None or not await _discard(scope, receive)
    shape = SHAPES.of(local_path(scope))
    body = json.dumps(shape(error), ensure_ascii=False).encode()
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    told += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    told += [(b"connection", b"close")] if close else []
    await send({"type": "http.response.start", "status": shape.status(error), "headers": told})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def has_body(scope: Scope) -> bool:
    """Whether a body follows the head: only these two headers can announce one."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body, and then what else the connection has to say."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _discard(scope: Scope, receive: Receive) -> bool:
    """Reads what is left of a body; False where it does not end soon, or the client waits to be asked."""
    if not has_body(scope):
        return True
    if header(scope, b"expect") is not None:
        return False
    num_bytes = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while num_bytes < _DISCARDED:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                if not message.get("more_body", False):
                    return True
                num_bytes += len(message.get("body", b""))
    except TimeoutError:
        pass
    return False
