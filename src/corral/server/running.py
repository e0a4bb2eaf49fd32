"""One request while the engine runs it: its events, in the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from corral.engine.events import Event, Failed, Finished
from corral.engine.handle import Handle
from corral.server.errors import ApiError, as_api_error
from corral.server.observer import Observer


class RunningRequest:
    """The events of a request, watched. Whoever leaves before the last one calls `leave`."""

    def __init__(
        self, handle: Handle, observer: Observer, forget: Callable[[RunningRequest], object]
    ) -> None:
        self.handle = handle
        self._observer, self._forget = observer, forget
        self._ended_by: ApiError | None = None
        self._stopped = self._left = False

    async def events(self) -> Sequence[Event]:
        """The next events, all that have come; none after the last.

        Raises:
            ApiError: the request, or an output of it, has failed, was out of time, or was ended.
        """
        events = await self.handle.await_all()
        if not events:
            self._forget(self)
        for event in events:
            self._observer.event(event)
            if isinstance(event, Failed):
                raise self._ended_by or as_api_error(event.error)
            if isinstance(event, Finished):
                self._check(event)
        return events

    def stop(self) -> None:
        """Ends the request as if it had come to its end by itself."""
        self._stopped = True
        self.handle.cancel()

    def end(self, error: ApiError) -> None:
        """Ends the request with an error."""
        self._ended_by = error
        self.handle.cancel()

    def leave(self) -> None:
        """The client has gone, or nobody wants the rest: the blocks are free within a step."""
        self._forget(self)
        if not self.handle.done and not self._left:
            self._left = True
            self._observer.left()
        self.handle.cancel()

    def _check(self, event: Finished) -> None:
        if event.reason == "error":
            raise ApiError(500, event.message or "the output could not be continued", code="engine_error")
        if event.reason == "cancelled" and not self._stopped:
            raise self._ended_by or ApiError(
                408, event.message or "the request was cancelled", code="timeout"
            )
