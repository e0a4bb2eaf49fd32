"""Many requests run to their ends, in order, however many there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from corral.engine.engine import Engine
from corral.engine.handle import Handle
from corral.engine.outputs import Collector
from corral.engine.request import Request
from corral.errors import CorralError, EngineBusyError, RequestError
from corral.text.tokenizer import Tokenizer

IN_FLIGHT = 4  # times what runs at once: enough that the engine never waits for the next request


def run_each(engine: Engine, requests: Iterable[Request], tokenizer: Tokenizer | None) -> Iterator[Collector]:
    """Runs requests and gives what came of each, in their order; cancels the rest when it is left.

    Requests are taken from the iterable only as the engine has room for them.

    Raises:
        CorralError: a request was refused, or failed.
    """
    with closing(try_each(engine, requests, tokenizer)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, CorralError):
                raise outcome
            yield outcome


def try_each(
    engine: Engine, requests: Iterable[Request | CorralError], tokenizer: Tokenizer | None
) -> Generator[Collector | CorralError, None, None]:
    """As `run_each`, but a request that is refused or fails gives its error, and the others go on.

    An error in a request's place comes out again at that place.

    Raises:
        EngineError: the engine has been closed.
    """
    ahead = IN_FLIGHT * engine.config.max_num_seqs
    flying: deque[Handle | CorralError] = deque()
    coming = iter(requests)
    held: Request | CorralError | None = None  # what the queue had no room for
    try:
        while True:
            while len(flying) < ahead and (request := held or next(coming, None)) is not None:
                taken = _take(engine, request)
                held = request if flying and isinstance(taken, EngineBusyError) else None
                if held is not None:
                    break
                flying.append(taken)
            if not flying:
                return
            outcome = _outcome(flying[0], tokenizer)
            flying.popleft()
            yield outcome
    finally:
        for handle in flying:
            if isinstance(handle, Handle):
                handle.cancel()


def _take(engine: Engine, request: Request | CorralError) -> Handle | CorralError:
    if isinstance(request, CorralError):
        return request
    try:
        return engine.submit(request)
    except (RequestError, EngineBusyError) as error:
        return error


def _outcome(flying: Handle | CorralError, tokenizer: Tokenizer | None) -> Collector | CorralError:
    """What came of a request, once it has ended."""
    if isinstance(flying, CorralError):
        return flying
    collector = Collector(flying.request.tokens, tokenizer)
    try:
        for event in flying:
            collector.add(event)
    except CorralError as error:
        return error
    return collector


def run_batch(
    engine: Engine, requests: Sequence[Request], tokenizer: Tokenizer | None, *, use_tqdm: bool
) -> list[Collector]:
    """Runs requests; with a progress bar on a terminal where there are several."""
    collectors = run_each(engine, requests, tokenizer)
    if not use_tqdm or len(requests) < 2:
        return list(collectors)
    from tqdm import tqdm

    with tqdm(total=len(requests), unit="prompt", disable=None) as bar:
        done = []
        for collector in collectors:
            done.append(collector)
            bar.update()
        return done


async def asubmit(engine: Engine, request: Request) -> Handle:
    """Submits a request without holding up the event loop; where the task is cancelled, so is the request."""
    submitting = asyncio.create_task(asyncio.to_thread(engine.submit, request))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel_submitted)
        raise


def _cancel_submitted(submitting: asyncio.Task[Handle]) -> None:
    """Cancels a request that was taken on after its task had gone."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


async def arun(engine: Engine, request: Request, tokenizer: Tokenizer | None) -> Collector:
    """Runs one request in an event loop; cancels it where the task is cancelled."""
    handle = await asubmit(engine, request)
    collector = Collector(request.tokens, tokenizer)
    try:
        async for event in handle:
            collector.add(event)
    finally:
        handle.cancel()
    return collector


async def arun_batch(
    engine: Engine, requests: Sequence[Request], tokenizer: Tokenizer | None
) -> list[Collector]:
    """Runs requests together in an event loop; when one fails, the rest are cancelled."""
    gate = asyncio.Semaphore(IN_FLIGHT * engine.config.max_num_seqs)

    async def run(request: Request) -> Collector:
        async with gate:
            return await arun(engine, request, tokenizer)

    tasks = [asyncio.create_task(run(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
