"""`/v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from json.encoder import encode_basestring_ascii as as_json
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

import corral
from corral.engine.events import Started, TokenLogprobs, Usage
from corral.server.answers import Answer, Call, Ended, Output, Said, total
from corral.server.chat_task import answer_chat
from corral.server.errors import as_api_error, openai_body
from corral.server.openai.chat_body import ChatBody
from corral.server.openai.logprobs import chat_logprobs, prompt_logprobs
from corral.server.openai.usage import timings_body, usage_body
from corral.server.service import Service
from corral.server.sse import MAY_STREAM, EventStream, unless_gone
from corral.server.wire import JsonRoute, dumps, json_response
from corral.text.tokenizer import Tokenizer
from corral.text.tool_calls.pieces import CallArguments, CallBegun, ChatPiece, TextPiece

FINGERPRINT = f"corral-{corral.__version__}"
DONE = b"data: [DONE]\n\n"


def chat_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute)

    @router.post("/v1/chat/completions", summary="Answer a dialog", responses=MAY_STREAM)
    async def create(body: ChatBody, request: HttpRequest) -> Response:
        llm = service.llm
        defaults = llm.default_sampling_params()
        answer = await answer_chat(service, request, body.model, lambda: body.task(defaults))
        writer = _Writer(llm.tokenizer, service.name_of(body.model), body)
        if body.streams:
            return EventStream(writer.stream(answer), answer.leave)
        return await unless_gone(request, writer.whole(answer))

    return router


class _Writer:
    """Writes one answer, in one piece or as a stream."""

    def __init__(self, tokenizer: Tokenizer, model: str, body: ChatBody) -> None:
        self._tokenizer, self._body = tokenizer, body
        self._id, self._model, self._created = f"chatcmpl-{uuid.uuid4().hex}", model, int(time.time())
        options = body.stream_options
        self._tells_usage = options is not None and bool(options.include_usage)
        self._tells_usage_always = options is not None and bool(options.continuous_usage_stats)
        self._so_far = Usage(0, 0, 0)
        # What comes before and after the text in a chunk; the number of the output goes in at the %d.
        chunk = self._chunk(0, {"content": ""}).decode().replace("%", "%%")
        before, self._closing = chunk.split('"content":""')
        self._opening = before.replace('"index":0', '"index":%d') + '"content":'

    async def whole(self, answer: Answer) -> Response:
        """The answer in one piece."""
        try:
            found = await answer.collect()
        finally:
            answer.leave()
        usage = usage_body(found.usage)
        result = {
            **self._head("chat.completion"),
            "choices": [self._choice(index, output) for index, output in enumerate(found.outputs)],
            "usage": usage,
        }
        if found.scored is not None:
            result["prompt_logprobs"] = prompt_logprobs(self._tokenizer, found.scored)
        first = found.outputs[0].end
        if first is not None:
            result["timings"] = timings_body(first.usage, first.timings)
        return json_response(result)

    async def stream(self, answer: Answer) -> AsyncIterator[bytes]:
        """The answer in events. An error is one of them."""
        ends: list[Ended] = []
        try:
            async for event in answer:
                if isinstance(event, Said):
                    if chunks := self._said(event):
                        yield chunks
                elif isinstance(event, Ended):
                    ends.append(event)
                    yield self._chunk(event.index, {}, reason=event.reason, stop=event.stop)
                elif isinstance(event, Started):
                    self._so_far = Usage(event.prompt_tokens, event.cached_tokens, 0)
                    opening = {"role": "assistant", "content": ""}
                    yield b"".join(self._chunk(i, opening) for i in range(self._body.n or 1))
            if self._tells_usage:
                yield self._usage(ends)
        except Exception as error:
            yield f"data: {dumps(openai_body(as_api_error(error)))}\n\n".encode()
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }

    def _choice(self, index: int, output: Output) -> dict[str, Any]:
        end = output.end
        assert end is not None, "the answer has been collected to its end"
        message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
        if output.calls:
            message["content"] = output.text or None
            message["tool_calls"] = [_call(call) for call in output.calls]
        choice: dict[str, Any] = {"index": index, "message": message, "logprobs": None}
        if self._body.logprobs:
            choice["logprobs"] = chat_logprobs(self._tokenizer, output.logprobs or ())
        return {**choice, "finish_reason": end.reason, "stop_reason": end.stop}

    def _said(self, said: Said) -> bytes:
        """The chunks of some pieces, with log-probabilities in the first; nothing where there is nothing."""
        if self._tells_usage_always:
            done = self._so_far.completion_tokens + said.num_tokens
            self._so_far = replace(self._so_far, completion_tokens=done)
        if len(said.pieces) == 1 and said.logprobs is None and not self._tells_usage_always:
            (piece,) = said.pieces
            if isinstance(piece, TextPiece):  # nearly all chunks, so there is a short way
                return f"{self._opening % said.index}{as_json(piece.text)}{self._closing}".encode()
        deltas: list[dict[str, Any]] = [delta for delta in map(_delta, said.pieces) if delta]
        if not deltas and said.logprobs is None:
            return b""
        deltas = deltas or [{}]
        chunks = [self._chunk(said.index, deltas[0], logprobs=said.logprobs)]
        return b"".join(chunks + [self._chunk(said.index, delta) for delta in deltas[1:]])

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        stop: int | str | None = None,
        logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        if logprobs is not None:
            choice["logprobs"] = chat_logprobs(self._tokenizer, logprobs)
        if reason is not None:
            choice["stop_reason"] = stop
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self._tells_usage_always:
            chunk["usage"] = usage_body(self._so_far)
        elif self._tells_usage:
            chunk["usage"] = None
        return f"data: {dumps(chunk)}\n\n".encode()

    def _usage(self, ends: Sequence[Ended]) -> bytes:
        usage = total([end.usage for end in ends])
        chunk = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_body(usage)}
        if ends:
            chunk["timings"] = timings_body(ends[0].usage, ends[0].timings)
        return f"data: {dumps(chunk)}\n\n".encode()


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _delta(piece: ChatPiece) -> dict[str, Any]:
    """What a piece adds to a message."""
    if isinstance(piece, TextPiece):
        return {"content": piece.text}
    if isinstance(piece, CallBegun):
        function = {"name": piece.name, "arguments": ""}
        return {
            "tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]
        }
    if isinstance(piece, CallArguments):
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    return {}
