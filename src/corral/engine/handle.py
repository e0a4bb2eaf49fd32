"""What the caller holds of a request: its events, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from corral.engine.events import Event, Failed, Finished
from corral.engine.request import Request
from corral.engine.wakeups import Wakeups


class Handle:
    """A request that was taken on. Iterate over it, with `for` or `async for`, for its events.

    The last event is a `Failed`, or the `Finished` of the last output. One consumer at a time; whoever leaves
    an iteration before that (`break`, an exception, a task that is cancelled) cancels the request.
    """

    def __init__(
        self, request: Request, num_outputs: int, cancel: Callable[[Handle], None], wakeups: Wakeups
    ) -> None:
        self.request, self.num_outputs = request, num_outputs
        self._cancel, self._wakeups = cancel, wakeups
        self._unfinished = num_outputs
        self._events: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._awaited: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """Ends the request: its blocks are free within a step. Does nothing where it has ended."""
        if not self.done:
            self._cancel(self)

    @property
    def done(self) -> bool:
        """Whether the last event has been given out or lies ready."""
        return self._unfinished == 0

    def __iter__(self) -> Iterator[Event]:
        return _Events(self)

    def __aiter__(self) -> AsyncIterator[Event]:
        return _AsyncEvents(self)

    def wait(self) -> Event | None:
        """The next event, as soon as there is one; None after the last."""
        with self._arrived:
            while not self._events:
                if self.done:
                    return None
                self._arrived.wait()
            return self._events.popleft()

    async def await_next(self) -> Event | None:
        """As `wait`, in an event loop."""
        events = await self._await(1)
        return events[0] if events else None

    async def await_all(self) -> list[Event]:
        """The next events, in an event loop: all that have come; none after the last."""
        return await self._await(None)

    async def _await(self, most: int | None) -> list[Event]:
        loop = asyncio.get_running_loop()
        while True:
            with self._arrived:
                if self._events:
                    return [self._events.popleft() for _ in range(most or len(self._events))]
                if self.done:
                    return []
                arrived = self._awaited = loop.create_future()
            await arrived

    def push(self, event: Event) -> None:
        """The engine's end: adds an event."""
        with self._arrived:
            self._events.append(event)
            if isinstance(event, Failed):
                self._unfinished = 0
            elif isinstance(event, Finished):
                self._unfinished -= 1
            self._arrived.notify()
            awaited, self._awaited = self._awaited, None
        if awaited is not None:
            self._wakeups.wake(awaited)


class _Events(Iterator[Event]):
    """The events for a thread; cancels the request where it is dropped before the last."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __next__(self) -> Event:
        event = self._handle.wait()
        if event is None:
            raise StopIteration
        return event

    def __del__(self) -> None:
        self._handle.cancel()


class _AsyncEvents(AsyncIterator[Event]):
    """As `_Events`, for an event loop. No generator: what a loop does with one that is left takes a while."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def __anext__(self) -> Event:
        event = await self._handle.await_next()
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        self._handle.cancel()
