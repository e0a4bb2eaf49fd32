"""Waking event loops from the engine's thread: once for all the streams that a step has events for."""

from __future__ import annotations

import asyncio
import threading


class Wakeups:
    """Sets futures from another thread than that of their event loops.

    A call into a loop from outside costs more than what it calls; those that come before the loop gets to
    the first share it.
    """

    def __init__(self) -> None:
        self._due: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        self._lock = threading.Lock()

    def wake(self, future: asyncio.Future[None]) -> None:
        """Sets a future soon. Does nothing where its event loop has been closed."""
        loop = future.get_loop()
        with self._lock:
            called = loop in self._due
            self._due.setdefault(loop, []).append(future)
        if called and not loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._set, loop)
        except RuntimeError:  # closed
            self._take(loop)

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        for future in self._take(loop):
            if not future.done():
                future.set_result(None)

    def _take(self, loop: asyncio.AbstractEventLoop) -> list[asyncio.Future[None]]:
        with self._lock:
            return self._due.pop(loop, [])
