"""The answers that are being made for open pages: a stop button ends them, and so does closing a page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

_WAIT_S = 5.0  # for an answer that was told to stop
_KEEP_S = 0.2  # for the browser to store the end of an answer before it shows another conversation


class RunningAnswers:
    """At most one answer for each open page, known by the page's session."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}

    @contextmanager
    def begin(self, session: str) -> Iterator[asyncio.Event]:
        """Make an answer; the event is set when it must stop."""
        stop, ended = asyncio.Event(), asyncio.Event()
        self._running[session] = (stop, ended)
        try:
            yield stop
        finally:
            ended.set()
            if self._running.get(session) == (stop, ended):
                del self._running[session]

    def has(self, session: str) -> bool:
        """Whether an answer is being made for the session."""
        return session in self._running

    def stop(self, session: str) -> None:
        """Tell the session's answer, if there is one, to stop."""
        if session in self._running:
            self._running[session][0].set()

    async def end(self, session: str) -> None:
        """Stop the session's answer, and wait until the page has what there is of it."""
        if session not in self._running:
            return
        stop, ended = self._running[session]
        stop.set()
        await asyncio.wait([asyncio.ensure_future(ended.wait())], timeout=_WAIT_S)
        await asyncio.sleep(_KEEP_S)
