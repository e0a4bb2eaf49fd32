"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from corral.engine.events import Started, Usage
from corral.server.answers import Answer, Ended, Said
from corral.server.anthropic.body import MessagesBody, PromptBody
from corral.server.anthropic.content import ContentBlocks
from corral.server.chat_task import answer_chat
from corral.server.errors import anthropic_body, as_api_error
from corral.server.service import Service
from corral.server.sse import MAY_STREAM, EventStream, unless_gone
from corral.server.wire import JsonRoute, dumps, json_response


def messages_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Anthropic"], route_class=JsonRoute)

    @router.post("/v1/messages", summary="Answer a dialog", responses=MAY_STREAM)
    async def create(body: MessagesBody, request: HttpRequest) -> Response:
        defaults = service.llm.default_sampling_params()
        answer = await answer_chat(service, request, body.model, lambda: body.task(body.sampling(defaults)))
        writer = _Writer(service.name_of(body.model), body.max_tokens)
        if body.stream:
            return EventStream(writer.stream(answer), answer.leave)
        return await unless_gone(request, writer.whole(answer))

    @router.post("/v1/messages/count_tokens", summary="Count the tokens of a dialog")
    async def count_tokens(body: PromptBody) -> Response:
        llm = service.llm
        service.adapter(body.model)  # raises where there is none of this name

        def count() -> int:
            return len(body.task(llm.default_sampling_params()).rendered(llm).tokens)

        return json_response({"input_tokens": await service.in_thread(count)})

    return router


class _Writer:
    """Writes one answer, in one piece or as a stream."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._id = f"msg_{uuid.uuid4().hex}"

    async def whole(self, answer: Answer) -> Response:
        """The answer in one piece."""
        blocks = ContentBlocks()
        ended: Ended | None = None
        try:
            async for event in answer:
                if isinstance(event, Said):
                    blocks.add(event.pieces)
                elif isinstance(event, Ended):
                    ended = event
        finally:
            answer.leave()
        assert ended is not None, "the answer has come to its end"
        blocks.close()
        return json_response({**self._message(ended.usage), "content": blocks.whole(), **self._end(ended)})

    async def stream(self, answer: Answer) -> AsyncIterator[bytes]:
        """The answer in events. An error is one of them."""
        blocks = ContentBlocks()
        try:
            async for event in answer:
                if isinstance(event, Started):
                    usage = Usage(event.prompt_tokens, event.cached_tokens, 0)
                    yield _event("message_start", message=self._message(usage)) + _event("ping")
                elif isinstance(event, Said):
                    if told := blocks.add(event.pieces):
                        yield b"".join(_event(**fields) for fields in told)
                elif isinstance(event, Ended):
                    told = blocks.close()
                    delta = _event("message_delta", delta=self._end(event), usage=_usage(event.usage))
                    yield b"".join(_event(**fields) for fields in told) + delta + _event("message_stop")
        except Exception as error:
            yield _event(**anthropic_body(as_api_error(error)))

    def _message(self, usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _end(self, ended: Ended) -> dict[str, Any]:
        """Why the answer ends: also where it is the context that is full, before `max_tokens` tokens."""
        reason = {"stop": "end_turn", "tool_calls": "tool_use"}.get(ended.reason, "max_tokens")
        if reason == "max_tokens" and ended.usage.completion_tokens < self._max_tokens:
            reason = "model_context_window_exceeded"
        if reason == "end_turn" and isinstance(ended.stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop}
        return {"stop_reason": reason, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    """Tokens, where `input_tokens` are those that the cache did not hold."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: {dumps({'type': type, **fields})}\n\n".encode()
