"""The answers that are being made for open pages: a stop button ends them, and so does closing a page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_WAIT_S = 5.0  # for an answer that was told to stop
_KEEP_S = 0.2  # for the browser to take in the end of an answer before it shows another conversation


@dataclass(eq=False)
class RunningAnswer:
    """An answer that is being made.

    Attributes:
        stop: set when it must stop.
        is_made: all of it is there, and on its way to the page.
        ended: set when the page has been given all of it.
    """

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    is_made: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class RunningAnswers:
    """At most one answer for each open page, known by the page's session."""

    def __init__(self) -> None:
        self._running: dict[str, RunningAnswer] = {}

    @contextmanager
    def begin(self, session: str) -> Iterator[RunningAnswer]:
        """Make an answer, and give it to the page."""
        answer = RunningAnswer()
        self._running[session] = answer
        try:
            yield answer
        finally:
            answer.ended.set()
            if self._running.get(session) is answer:
                del self._running[session]

    def is_making(self, session: str) -> bool:
        """Whether an answer is still being made for the session."""
        return session in self._running and not self._running[session].is_made

    def stop(self, session: str) -> None:
        """Tell the session's answer, if there is one, to stop."""
        if session in self._running:
            self._running[session].stop.set()

    async def end(self, session: str) -> None:
        """Stop the session's answer, and wait until the page has what there is of it."""
        if session not in self._running:
            return
        answer = self._running[session]
        answer.stop.set()
        await asyncio.wait([asyncio.ensure_future(answer.ended.wait())], timeout=_WAIT_S)
        await asyncio.sleep(_KEEP_S)
