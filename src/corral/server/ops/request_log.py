"""One line for each request, as text or as JSON; and how a server's process logs at all."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import Queue
from typing import Any, TextIO

from corral.server.ops.record import Exchange

REQUESTS = "corral.requests"
_PLAIN = re.compile(r"[A-Za-z0-9._:/,@+\[\]-]+")
_MOST_LINES = 10_000  # that wait to be written; more are dropped rather than waited for
_MOST_PATH, _MOST_PROMPT = 200, 20_000  # characters


class RequestLog:
    """Writes a line for each request to the logger "corral.requests"."""

    def __init__(self, log_format: str) -> None:
        self._as_json = log_format == "json"
        self._logger = logging.getLogger(REQUESTS)

    def write(self, exchange: Exchange, route: str) -> None:
        """Tells of a request that is over."""
        if self._logger.isEnabledFor(logging.INFO):
            line = line_of(exchange, route)
            self._logger.info(json.dumps(line, ensure_ascii=False) if self._as_json else _as_text(line))


def line_of(exchange: Exchange, route: str) -> dict[str, Any]:
    """What a line tells, without what is not known of the request."""
    ran = exchange.model is not None
    facts: dict[str, Any] = {
        "time": _now(),
        "id": exchange.id,
        "method": exchange.method,
        "path": exchange.path[:_MOST_PATH],
        "route": route,
        "status": exchange.status,
        "client": exchange.client,
        "key": exchange.key,
        "refused": exchange.refused,
        "model": exchange.model,
        "prompt_tokens": exchange.prompt_tokens if ran else None,
        "cached_tokens": exchange.cached_tokens if ran else None,
        "completion_tokens": exchange.completion_tokens if ran else None,
        "queue_ms": _ms(exchange.queued),
        "first_token_ms": _ms(exchange.first_token),
        "total_ms": _ms(exchange.seconds),
        "finish_reason": ",".join(dict.fromkeys(exchange.finish_reasons)) or None,
        "client_left": exchange.left or None,
        "prompt": None if exchange.prompt is None else exchange.prompt[:_MOST_PROMPT],
    }
    return {name: value for name, value in facts.items() if value is not None and value != ""}


@contextmanager
def logging_to(stream: TextIO, log_format: str) -> Iterator[None]:
    """Lets a process log to a stream, in a thread of its own: a reader that is slow holds up no request."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    lines: Queue[logging.LogRecord] = Queue(_MOST_LINES)
    queued, listener = QueueHandler(lines), QueueListener(lines, handler)
    queued.setFormatter(logging.Formatter("%(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("corral")
    levels = root.level, ours.level
    raising, logging.raiseExceptions = logging.raiseExceptions, False  # a full queue, a closed stream
    root.addHandler(queued)
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(queued)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        listener.stop()
        logging.raiseExceptions = raising


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == REQUESTS:
            return record.getMessage()
        return f"{_now()} {record.levelname} {record.name}: {record.getMessage()}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == REQUESTS:
            return record.getMessage()
        told = {"time": _now(), "level": record.levelname, "logger": record.name}
        return json.dumps({**told, "message": record.getMessage()}, ensure_ascii=False)


def _as_text(line: dict[str, Any]) -> str:
    """`time id method path status`, and the rest as name=value; what is no plain word is in quotes."""
    head = [line.pop(name, "-") for name in ("time", "id", "method", "path", "status")]
    return " ".join([*map(_word, head), *(f"{name}={_word(value)}" for name, value in line.items())])


def _word(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
