"""Watches what the engine does for a request: for the metrics, its exchange, and so the log and the trace."""

from __future__ import annotations

import time

from corral.engine.events import Event, Failed, Finished, Started, Tokens
from corral.server.ops.metrics import ModelMetrics
from corral.server.ops.pace import Pace
from corral.server.ops.record import Exchange


class Watcher:
    """An observer of one request; `event` is called for every token, and costs about a microsecond.

    Args:
        began: when the request arrived, on the monotonic clock.
        exchange: the HTTP exchange that it belongs to; None where nobody keeps one.
        metrics: those of its model.
        pace: is told when it ends.
        num_outputs: so many `Finished` end it.
    """

    __slots__ = ("_began", "_between", "_exchange", "_last", "_metrics", "_pace", "_to_go", "_untold")

    def __init__(
        self, began: float, exchange: Exchange | None, metrics: ModelMetrics, pace: Pace, num_outputs: int
    ) -> None:
        self._began, self._exchange, self._metrics, self._pace = began, exchange, metrics, pace
        self._between = metrics.between_tokens
        self._last: dict[int, float] = {}
        self._to_go, self._untold = num_outputs, 0

    def event(self, event: Event) -> None:
        """Looks at what the engine says."""
        if type(event) is Tokens:
            now = time.monotonic()
            last = self._last.get(event.index)
            count = len(event.token_ids)
            if last is None:
                self._first(now)
            elif count:
                self._between.observe((now - last) / count, count)
            self._last[event.index] = now
            self._untold += count
        else:
            self._rarely(event)

    def left(self) -> None:
        """The client has gone: nobody reads the events by which the outputs end."""
        self._metrics.cancel(self._to_go)
        self._pace.ended()
        if self._exchange is not None:
            self._exchange.left = True
            self._exchange.completion_tokens += self._untold
            self._exchange.finish_reasons.append("cancelled")

    def _first(self, now: float) -> None:
        """The first token of an output; the request's is the first of them."""
        if self._last:
            return
        seconds = now - self._began
        self._metrics.first_token.observe(seconds)
        if self._exchange is not None and self._exchange.first_token is None:
            self._exchange.first_token = now - self._exchange.began

    def _rarely(self, event: Event) -> None:
        exchange = self._exchange
        if isinstance(event, Started):
            self._metrics.prompt_tokens.observe(event.prompt_tokens)
            if exchange is not None:
                exchange.prompt_tokens += event.prompt_tokens
                exchange.cached_tokens += event.cached_tokens
        elif isinstance(event, Finished):
            self._metrics.finish(event, time.monotonic() - self._began)
            self._to_go -= 1
            self._untold -= event.usage.completion_tokens
            if not self._to_go:
                self._pace.ended()
            if exchange is not None:
                exchange.completion_tokens += event.usage.completion_tokens
                exchange.finish_reasons.append(event.reason)
                exchange.queued = max(exchange.queued or 0.0, event.timings.queued)
        elif isinstance(event, Failed):
            self._metrics.fail()
            self._pace.ended()
            if exchange is not None:
                exchange.finish_reasons.append("error")
