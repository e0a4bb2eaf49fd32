"""The model behind the routes: loading, its names, and the requests that run."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from starlette.types import Scope

from corral.engine.handle import Handle
from corral.engine.request import Request
from corral.llm import LLM
from corral.server.errors import ApiError, draining, loading
from corral.server.observer import NoTelemetry, Telemetry
from corral.server.running import RunningRequest

logger = logging.getLogger(__name__)
T = TypeVar("T")
State = Literal["loading", "ready", "draining"]

# Names under which clients of TGI ask for whatever model there is.
ANY_MODEL = ("tgi", "dummy")
_WORKERS = 32  # threads that render, compile grammars and submit: what they do is short, or waits for others


class Service:
    """What all interfaces share.

    Args:
        load: makes the model; called once, by `load`, in a thread of the caller's.
        names: under which the model is asked for; the first is the one that answers carry.
        telemetry: watches the requests.
        request_timeout: seconds that a request may take; None sets no bound.
        adapters_dir: the folder below which adapters may be loaded while the server runs; None refuses to.

    Attributes:
        created: when the model was ready, in seconds since 1970.
    """

    def __init__(
        self,
        load: Callable[[], LLM],
        names: Sequence[str],
        *,
        telemetry: Telemetry | None = None,
        request_timeout: float | None = None,
        adapters_dir: Path | None = None,
    ) -> None:
        self.names = tuple(names)
        self.telemetry = telemetry or NoTelemetry()
        self.request_timeout = request_timeout
        self.adapters_dir = adapters_dir
        self.created = int(time.time())
        self._load = load
        self._llm: LLM | None = None
        self._draining = False
        self._running: set[RunningRequest] = set()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="corral-request")

    @property
    def state(self) -> State:
        if self._draining:
            return "draining"
        return "loading" if self._llm is None else "ready"

    @property
    def llm(self) -> LLM:
        """The model.

        Raises:
            ApiError: it is still loading, or the server is on its way down.
        """
        if self._draining:
            raise draining()
        if self._llm is None:
            raise loading()
        return self._llm

    @property
    def loaded(self) -> LLM | None:
        """The model, if it is there: also while the server drains."""
        return self._llm

    @property
    def num_running(self) -> int:
        """Requests that have not been answered to their ends."""
        return len(self._running)

    def load(self) -> LLM:
        """Loads the model; `state` is "ready" then.

        Raises:
            CorralError: it cannot be loaded.
        """
        self._llm = self._load()
        self.created = int(time.time())
        return self._llm

    def adapter(self, model: str | None) -> str | None:
        """Which adapter a request for `model` wants; None for the model itself, which no name at all means.

        Raises:
            ApiError: there is no model of this name.
        """
        if model is None or model in self.names or model in ANY_MODEL:
            return None
        if model in self.llm.engine.adapters:
            return model
        raise self.unknown_model(model)

    def unknown_model(self, model: str) -> ApiError:
        """The answer to who asks for what is not there."""
        known = ", ".join((*self.names, *self.llm.engine.adapters))
        message = f"model {model[:200]!r} is not served here; there are {known}"
        return ApiError(404, message, param="model", code="model_not_found")

    def name_of(self, model: str | None) -> str:
        """The name that an answer carries for `model`."""
        return self.names[0] if model is None or model in ANY_MODEL else model

    def timeout(self, headers: Mapping[str, str]) -> float | None:
        """Seconds that a request may take: the server's bound, or less where the client says so.

        Raises:
            ApiError: the client's header is no number of seconds.
        """
        text = headers.get("x-request-timeout")
        if text is None:
            return self.request_timeout
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < 1e6:
            raise ApiError(400, "x-request-timeout must be a number of seconds", param="x-request-timeout")
        return seconds if self.request_timeout is None else min(seconds, self.request_timeout)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Does what takes a while without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def submit(self, scope: Scope, model: str | None, make: Callable[[], Request]) -> RunningRequest:
        """Makes a request and has the engine take it on, in a thread; where the task is cancelled, so is the
        request.

        Raises:
            CorralError: it was refused.
        """
        engine = self.llm.engine
        submitting = asyncio.ensure_future(self.in_thread(lambda: engine.submit(make())))
        try:
            handle = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel_submitted)
            raise
        observer = self.telemetry.begin(scope, handle.request, self.name_of(model))
        running = RunningRequest(handle, observer, self._running.discard)
        self._running.add(running)
        return running

    def drain(self) -> None:
        """Takes no further requests; those that run go on."""
        self._draining = True

    def end_running(self, message: str) -> None:
        """Ends the requests that still run with an error."""
        for running in list(self._running):
            running.end(ApiError(503, message, code="draining", retry_after=5))

    def close(self) -> None:
        """Ends the engine."""
        self._draining = True
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._llm is not None:
            self._llm.close()


def _cancel_submitted(submitting: asyncio.Future[Handle]) -> None:
    """Cancels a request that was taken on after its client had gone."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
