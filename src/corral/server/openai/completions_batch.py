"""Several prompts of one body: their requests run together, and end together where one goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.types import Scope

from corral.engine.request import Request
from corral.errors import CorralError, EngineBusyError, EngineError
from corral.server.answers import Answer, AnswerEvent, Collected, Output
from corral.server.errors import ApiError, as_api_error
from corral.server.service import Service


class Batch:
    """The events of several answers, with the numbers of their prompts. Iterate once; `leave` ends all."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers

    @property
    def prompts(self) -> Sequence[Sequence[int]]:
        """The prompts as tokens."""
        return [answer.running.handle.request.tokens for answer in self.answers]

    async def __aiter__(self) -> AsyncIterator[tuple[int, AnswerEvent]]:
        if len(self.answers) == 1:
            async for event in self.answers[0]:
                yield 0, event
            return
        arrived: asyncio.Queue[tuple[int, AnswerEvent] | BaseException | None] = asyncio.Queue()
        feeding = [asyncio.ensure_future(_feed(n, answer, arrived)) for n, answer in enumerate(self.answers)]
        try:
            left = len(feeding)
            while left:
                told = await arrived.get()
                if told is None:
                    left -= 1
                elif isinstance(told, BaseException):
                    raise told
                else:
                    yield told
        finally:
            self.leave()
            for task in feeding:
                task.cancel()

    async def collect(self) -> list[Collected]:
        """The whole answers."""
        found = [Collected([Output() for _ in range(a.running.handle.num_outputs)]) for a in self.answers]
        async for number, event in self:
            found[number].add(event)
        return found

    def leave(self) -> None:
        """Ends what is left."""
        for answer in self.answers:
            answer.leave()


async def submit_batch(
    service: Service, scope: Scope, model: str | None, makers: Sequence[Callable[[], Request]]
) -> Batch:
    """Has the engine take on requests, in their order: all of them or none.

    Raises:
        ApiError, CorralError: one was refused; the message says which.
    """
    limit = service.llm.engine.config.max_waiting_requests
    if len(makers) > limit:
        raise ApiError(400, f"prompt has {len(makers)} entries; give at most {limit} at once", param="prompt")
    answers: list[Answer] = []
    try:
        for make in makers:
            answers.append(Answer(await service.submit(scope, model, make)))  # noqa: PERF401
    except BaseException as error:
        Batch(answers).leave()
        if isinstance(error, CorralError) and not isinstance(error, EngineBusyError | EngineError):
            raise _named(error, len(answers), several=len(makers) > 1) from None
        raise
    return Batch(answers)


async def _feed(
    number: int, answer: Answer, arrived: asyncio.Queue[tuple[int, AnswerEvent] | BaseException | None]
) -> None:
    try:
        async for event in answer:
            arrived.put_nowait((number, event))
    except Exception as error:
        arrived.put_nowait(error)
    else:
        arrived.put_nowait(None)


def _named(error: CorralError, number: int, several: bool) -> ApiError:
    """The refusal of a prompt says which it is."""
    if not str(error).startswith("the prompt "):
        return as_api_error(error)
    field = f"prompt[{number}]" if several else "prompt"
    return ApiError(400, f"{field}: {error}", param=field)
