"""`/v1/responses`, without a memory: nothing of a response is kept when it has been sent."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from corral.engine.events import Usage
from corral.engine.sampling.params import SamplingParams
from corral.server.answers import Answer, Ended, Said
from corral.server.chat_task import answer_chat
from corral.server.errors import ApiError, as_api_error
from corral.server.openai.responses_body import ResponseBody
from corral.server.openai.responses_output import Change, Json, OutputItems
from corral.server.openai.usage import timings_body
from corral.server.service import Service
from corral.server.sse import MAY_STREAM, EventStream, unless_gone
from corral.server.wire import JsonRoute, dumps, json_response
from corral.text.tokenizer import Tokenizer


def responses_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute)

    @router.post("/v1/responses", summary="Answer a dialog, in items", responses=MAY_STREAM)
    async def create(body: ResponseBody, request: HttpRequest) -> Response:
        llm = service.llm
        params = body.params(llm.default_sampling_params())
        answer = await answer_chat(service, request, body.model, lambda: body.task(llm, params))
        writer = _Writer(llm.tokenizer, service.name_of(body.model), body, params)
        if body.streams:
            return EventStream(writer.stream(answer), answer.leave)
        return await unless_gone(request, writer.whole(answer))

    @router.post("/v1/responses/input_tokens", summary="Count the tokens of a dialog")
    async def count(body: ResponseBody) -> Response:
        llm = service.llm
        service.adapter(body.model)  # raises where there is none of this name
        params = body.params(llm.default_sampling_params())

        def num_tokens() -> int:
            return len(body.task(llm, params).rendered(llm).tokens)

        counted = await service.in_thread(num_tokens)
        return json_response({"object": "response.input_tokens", "input_tokens": counted})

    @router.get("/v1/responses/{rest:path}", summary="Refused: no response is kept")
    @router.post("/v1/responses/{rest:path}", include_in_schema=False)
    @router.delete("/v1/responses/{rest:path}", include_in_schema=False)
    async def look_up(rest: str) -> Response:  # noqa: ARG001
        raise ApiError(
            404,
            "this server keeps no responses (store is false), so there is none to look at",
            code="not_stored",
        )

    return router


class _Writer:
    """Writes one response, in one piece or as a stream."""

    def __init__(self, tokenizer: Tokenizer, model: str, body: ResponseBody, params: SamplingParams) -> None:
        self._items, self._body = OutputItems(tokenizer), body
        self._head = _head(model, body, params)
        self._number = 0

    async def whole(self, answer: Answer) -> Response:
        """The response in one piece."""
        end: Ended | None = None
        try:
            async for event in answer:
                if isinstance(event, Said):
                    self._items.add(event)
                elif isinstance(event, Ended):
                    end = event
        finally:
            answer.leave()
        assert end is not None, "an answer ends with an end, or with an error"
        self._items.finish(end.reason != "length")
        return json_response(self._ended(end))

    async def stream(self, answer: Answer) -> AsyncIterator[bytes]:
        """The response in events. An error is one of them, and the last."""
        yield self._event("response.created", {"response": self._head})
        yield self._event("response.in_progress", {"response": self._head})
        try:
            async for event in answer:
                if isinstance(event, Said):
                    if changes := self._items.add(event):
                        yield self._events(changes)
                elif isinstance(event, Ended):
                    complete = event.reason != "length"
                    yield self._events(self._items.finish(complete))
                    last = "response.completed" if complete else "response.incomplete"
                    yield self._event(last, {"response": self._ended(event)})
        except Exception as error:
            yield self._event("response.failed", {"response": self._failed(as_api_error(error))})

    def _ended(self, end: Ended) -> Json:
        """The whole response."""
        ended = {**self._head, "status": "completed", "output": self._items.items, "usage": _usage(end.usage)}
        if end.reason == "length":
            ended |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            ended["completed_at"] = int(time.time())
        return {**ended, "timings": timings_body(end.usage, end.timings)}

    def _failed(self, error: ApiError) -> Json:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        told = {"code": code, "message": error.message}
        return {**self._head, "status": "failed", "error": told, "output": self._items.broken_off()}

    def _events(self, changes: list[Change]) -> bytes:
        return b"".join(self._event(kind, fields) for kind, fields in changes)

    def _event(self, kind: str, fields: Json) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {dumps(event)}\n\n".encode()


def _head(model: str, body: ResponseBody, params: SamplingParams) -> Json:
    """A response before it has any output: what was asked for, with what holds where nothing was said."""
    text = body.text
    form = None if text is None else text.format
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": params.temperature,
        "text": {"format": _plain(form) if form else {"type": "text"}, "verbosity": "medium"},
        "tool_choice": _plain(body.tool_choice) or "auto",
        "tools": [_tool(_plain(tool)) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _plain(value: Any) -> Any:
    """A part of a body, as it came."""
    return value.model_dump(by_alias=True, exclude_unset=True) if hasattr(value, "model_dump") else value


def _tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, **tool, "strict": bool(tool.get("strict"))}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
