"""What the caller holds of a request: its events, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from corral.engine.events import Event, Failed, Finished
from corral.engine.request import Request


class Handle:
    """A request that was taken on. Iterate over it, with `for` or `async for`, for its events.

    The last event is a `Failed`, or the `Finished` of the last output. One consumer at a time.
    """

    def __init__(self, request: Request, num_outputs: int, cancel: Callable[[Handle], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._unfinished = num_outputs
        self._events: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._wake: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Ends the request: its blocks are free within a step. Does nothing where it has ended."""
        if not self.done:
            self._cancel(self)

    @property
    def done(self) -> bool:
        """Whether the last event has been given out or lies ready."""
        return self._unfinished == 0

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._arrived:
                while not self._events:
                    if self.done:
                        return
                    self._arrived.wait()
                event = self._events.popleft()
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        with self._arrived:
            self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while True:
                arrived.clear()
                with self._arrived:
                    events, done = list(self._events), self.done
                    self._events.clear()
                for event in events:
                    yield event
                if done:
                    return
                if not events:
                    await arrived.wait()
        finally:
            self._wake = None

    def push(self, event: Event) -> None:
        """The engine's end: adds an event."""
        with self._arrived:
            self._events.append(event)
            if isinstance(event, Failed):
                self._unfinished = 0
            elif isinstance(event, Finished):
                self._unfinished -= 1
            self._arrived.notify()
            if self._wake is not None:
                try:
                    self._wake()
                except RuntimeError:  # the consumer's event loop has been closed
                    self._wake = None
