"""`/generate`, `/generate_stream`, and `/`, which is either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from corral.engine.events import TokenLogprobs
from corral.llm import LLM
from corral.server.answers import Answer, Collected, Ended, Output, Said
from corral.server.errors import as_api_error, tgi_body
from corral.server.service import Service
from corral.server.sse import MAY_STREAM, EventStream, unless_gone
from corral.server.tgi.body import CompatGenerateBody, GenerateBody
from corral.server.tgi.details import (
    finish_reason,
    prefill_body,
    token_body,
    tokens_body,
    top_body,
    total_logprob,
)
from corral.server.wire import JsonRoute, dumps, json_response
from corral.text.detokenizer import IncrementalDetokenizer
from corral.text.tool_calls import TextPiece


def generate_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["TGI"], route_class=JsonRoute)

    async def begin(body: GenerateBody, request: HttpRequest, *, streams: bool) -> _Writer:
        llm, timeout = service.llm, service.timeout(request.headers)
        model = body.given.adapter_id
        adapter = service.adapter(model)
        running = await service.submit(
            request.scope, model, lambda: body.request(llm, adapter, timeout, streams=streams)
        )
        return _Writer(llm, body, Answer(running))

    @router.post("/generate", summary="Go on from a text")
    async def generate(body: GenerateBody, request: HttpRequest) -> Response:
        writer = await begin(body, request, streams=False)
        return json_response(await unless_gone(request, writer.whole()))

    @router.post("/generate_stream", summary="Go on from a text, token by token", responses=MAY_STREAM)
    async def generate_stream(body: GenerateBody, request: HttpRequest) -> Response:
        writer = await begin(body, request, streams=True)
        return EventStream(writer.stream(), writer.answer.leave)

    @router.post("/", summary="Go on from a text, token by token where stream is set", responses=MAY_STREAM)
    async def compat_generate(body: CompatGenerateBody, request: HttpRequest) -> Response:
        writer = await begin(body, request, streams=bool(body.stream))
        if body.stream:
            return EventStream(writer.stream(), writer.answer.leave)
        return json_response([await unless_gone(request, writer.whole())])

    return router


class _Writer:
    """Writes one answer, in one piece or as a stream."""

    def __init__(self, llm: LLM, body: GenerateBody, answer: Answer) -> None:
        self.answer = answer
        self._tokenizer, self._given = llm.tokenizer, body.given
        self._before = body.inputs if body.given.return_full_text else ""
        request = answer.running.handle.request
        self._prompt, self._params = request.tokens, request.params
        self._seed = request.params.seed if body.given.samples else None
        room = llm.max_model_len - len(request.tokens)
        self._most, self._stop_ids = min(room, request.params.max_tokens or room), request.stop_ids
        self._reader = IncrementalDetokenizer(llm.tokenizer, continues=True)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece: the most likely of `best_of` texts."""
        try:
            found = await self.answer.collect()
        finally:
            self.answer.leave()
        best, *others = sorted(found.outputs, key=total_logprob, reverse=True)
        result: dict[str, Any] = {"generated_text": self._before + best.text}
        if self._given.details:
            result["details"] = self._details(best, found)
            if others:
                result["details"]["best_of_sequences"] = [
                    {"generated_text": self._before + one.text, **self._details(one, found)} for one in others
                ]
        return result

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in events, one for each token. An error is one of them.

        The last token's event tells the end as well. A token that may be the last waits until it is known.
        """
        text, index = "", 0
        held: dict[str, Any] = {}
        try:
            async for event in self.answer:
                if isinstance(event, Said):
                    said = "".join(piece.text for piece in event.pieces if isinstance(piece, TextPiece))
                    text += said
                    for token, at in self._spread(said, event.logprobs or ()):
                        if held:
                            yield _event(held)
                        index += 1
                        held = self._token(index, token, at)
                    if held and not self._may_end(index, held, text):
                        yield _event(held)
                        held = {}
                elif isinstance(event, Ended):
                    yield _event(self._last(held, text, event))
        except Exception as error:
            yield _event(tgi_body(as_api_error(error)))

    def _spread(self, said: str, logprobs: Sequence[TokenLogprobs]) -> list[tuple[str, TokenLogprobs]]:
        """Tokens with the text that each adds: all of it goes with the last where it cannot be told."""
        known = self._tokenizer.vocab_size
        ids = [at.chosen.token_id for at in logprobs]
        texts = [self._reader.push(token) if token < known else "" for token in ids]
        if "".join(texts) != said:
            texts = [""] * (len(texts) - 1) + [said]
        return list(zip(texts, logprobs, strict=False))

    def _token(self, index: int, text: str, at: TokenLogprobs) -> dict[str, Any]:
        event = {"index": index, "token": token_body(self._tokenizer, at.chosen, text)}
        if self._given.top_n_tokens:
            event["top_tokens"] = top_body(self._tokenizer, at)
        return {**event, "generated_text": None, "details": None}

    def _last(self, token: dict[str, Any], text: str, ended: Ended) -> dict[str, Any]:
        """The last token's event, with the end."""
        assert token, "a token that may be the last has waited"
        details = {**self._end(ended), "input_length": len(self._prompt)}
        return {**token, "generated_text": self._before + text, "details": details}

    def _end(self, ended: Ended) -> dict[str, Any]:
        return {
            "finish_reason": finish_reason(ended),
            "generated_tokens": ended.usage.completion_tokens,
            "seed": self._seed,
        }

    def _details(self, output: Output, found: Collected) -> dict[str, Any]:
        assert output.end is not None, "the answer has been collected to its end"
        logprobs = output.logprobs or ()
        prefill = [] if found.scored is None else prefill_body(self._tokenizer, self._prompt, found.scored)
        tokens = tokens_body(self._tokenizer, logprobs)
        details = {**self._end(output.end), "prefill": prefill, "tokens": tokens}
        if self._given.top_n_tokens:
            details["top_tokens"] = [top_body(self._tokenizer, at) for at in logprobs]
        return details

    def _may_end(self, index: int, token: dict[str, Any], text: str) -> bool:
        """Whether a token may be the last: a grammar may end with any."""
        return (
            self._params.structured_outputs is not None
            or index >= self._most
            or token["token"]["id"] in self._stop_ids
            or text.endswith(self._params.stop)
        )


def _event(fields: dict[str, Any]) -> bytes:
    return f"data:{dumps(fields)}\n\n".encode()
