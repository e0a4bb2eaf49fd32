"""`/v1/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii as as_json
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from corral.engine.events import PromptScored, Started, TokenLogprobs, Usage
from corral.server.answers import AnswerEvent, Collected, Ended, Said, total
from corral.server.errors import as_api_error, openai_body
from corral.server.openai.chat import DONE, FINGERPRINT
from corral.server.openai.completions_batch import Batch, submit_batch
from corral.server.openai.completions_body import CompletionBody
from corral.server.openai.completions_logprobs import LogprobLists, joined
from corral.server.openai.logprobs import prompt_logprobs
from corral.server.openai.usage import timings_body, usage_body
from corral.server.service import Service
from corral.server.sse import MAY_STREAM, EventStream, unless_gone
from corral.server.wire import JsonRoute, dumps, json_response
from corral.text.tokenizer import Tokenizer
from corral.text.tool_calls import TextPiece


def completions_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute)

    @router.post("/v1/completions", summary="Go on from texts", responses=MAY_STREAM)
    async def create(body: CompletionBody, request: HttpRequest) -> Response:
        llm, adapter = service.llm, service.adapter(body.model)
        params, timeout = body.params(llm.default_sampling_params()), service.timeout(request.headers)
        makers = [partial(body.request, llm, prompt, params, adapter, timeout) for prompt in body.prompts]
        batch = await unless_gone(request, submit_batch(service, request.scope, body.model, makers))
        writer = _Writer(llm.tokenizer, service.name_of(body.model), body, batch)
        if body.streams:
            return EventStream(writer.stream(), batch.leave)
        return await unless_gone(request, writer.whole())

    return router


class _Writer:
    """Writes the answers to one body, in one piece or as a stream."""

    def __init__(self, tokenizer: Tokenizer, model: str, body: CompletionBody, batch: Batch) -> None:
        self._tokenizer, self._body, self._batch = tokenizer, body, batch
        self._id, self._model, self._created = f"cmpl-{uuid.uuid4().hex}", model, int(time.time())
        options = body.stream_options
        self._tells_usage = options is not None and bool(options.include_usage)
        self._tells_usage_always = options is not None and bool(options.continuous_usage_stats)
        self._started: dict[int, Usage] = {}
        self._lists: dict[int, LogprobLists] = {}
        # What comes before and after the text in a chunk; the number of the answer goes in at the %d.
        chunk = self._chunk(0).decode().replace("%", "%%")
        before, self._closing = chunk.split('"text":""')
        self._opening = before.replace('"index":0', '"index":%d') + '"text":'

    async def whole(self) -> Response:
        """The answers in one piece."""
        try:
            found = await self._batch.collect()
        finally:
            self._batch.leave()
        choices = [
            self._choice(number, index, answer)
            for number, answer in enumerate(found)
            for index in range(len(answer.outputs))
        ]
        result = {
            **self._head(),
            "choices": choices,
            "usage": usage_body(_sum([answer.usage for answer in found])),
        }
        first = found[0].outputs[0].end
        if first is not None and len(found) == 1:
            result["timings"] = timings_body(first.usage, first.timings)
        return json_response(result)

    async def stream(self) -> AsyncIterator[bytes]:
        """The answers in events. An error is one of them."""
        ends: list[list[Ended]] = [[] for _ in self._batch.answers]
        try:
            async for number, event in self._batch:
                if isinstance(event, Ended):
                    ends[number].append(event)
                if chunks := self._told(number, event):
                    yield chunks
            if self._tells_usage:
                yield self._usage(ends)
        except Exception as error:
            yield f"data: {dumps(openai_body(as_api_error(error)))}\n\n".encode()
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }

    def _choice(self, number: int, index: int, answer: Collected) -> dict[str, Any]:
        """One answer to a prompt."""
        output, echo = answer.outputs[index], self._body.echo
        assert output.end is not None, "the answer has been collected to its end"
        choice: dict[str, Any] = {
            "index": self._number(number, index),
            "text": (self._prompt_text(number) if echo else "") + output.text,
            "logprobs": None,
            "finish_reason": self._reason(output.end),
            "stop_reason": output.end.stop,
        }
        if self._body.logprobs is not None:
            lists, parts = self._new_lists(), []
            if echo and answer.scored is not None:
                parts.append(self._prompt_lists(lists, number, answer.scored))
            choice["logprobs"] = joined([*parts, lists.output(output.logprobs or ())])
        if self._body.prompt_logprobs is not None and answer.scored is not None:
            top = self._body.prompt_logprobs
            cut = [TokenLogprobs(at.chosen, at.top[:top]) for at in answer.scored.logprobs]
            choice["prompt_logprobs"] = prompt_logprobs(
                self._tokenizer, PromptScored(answer.scored.start, tuple(cut))
            )
        return choice

    def _told(self, number: int, event: AnswerEvent) -> bytes:
        """The chunks of an event; nothing where there is nothing to show."""
        if isinstance(event, Said):
            return self._said(number, event)
        if isinstance(event, Ended):
            return self._chunk(self._number(number, event.index), end=event)
        if isinstance(event, Started):
            self._started[number] = Usage(event.prompt_tokens, event.cached_tokens, 0)
        if not self._body.echo or isinstance(event, Started) != (self._body.logprobs is None):
            return b""
        return b"".join(self._echo(number, index, event) for index in range(self._body.outputs))

    def _echo(self, number: int, index: int, event: Started | PromptScored) -> bytes:
        """The prompt at the beginning of an answer; its log-probabilities go with it."""
        at, logprobs = self._number(number, index), None
        if isinstance(event, PromptScored):
            lists = self._lists.setdefault(at, self._new_lists())
            logprobs = self._prompt_lists(lists, number, event)
        return self._chunk(at, self._prompt_text(number), logprobs)

    def _said(self, number: int, said: Said) -> bytes:
        at = self._number(number, said.index)
        if self._tells_usage_always:
            so_far = self._started[number]
            done = so_far.completion_tokens + said.num_tokens
            self._started[number] = Usage(so_far.prompt_tokens, so_far.cached_tokens, done)
        text = "".join(piece.text for piece in said.pieces if isinstance(piece, TextPiece))
        if said.logprobs is None and not self._tells_usage_always:
            # Nearly all chunks, so there is a short way.
            return f"{self._opening % at}{as_json(text)}{self._closing}".encode() if text else b""
        if said.logprobs is None:
            return self._chunk(at, text) if text else b""
        lists = self._lists.setdefault(at, self._new_lists())
        return self._chunk(at, text, lists.output(said.logprobs))

    def _chunk(
        self, index: int, text: str = "", logprobs: dict[str, Any] | None = None, end: Ended | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        if end is not None:
            choice |= {"finish_reason": self._reason(end), "stop_reason": end.stop}
        chunk = {**self._head(), "choices": [choice]}
        if self._tells_usage_always:
            chunk["usage"] = usage_body(_sum(list(self._started.values())))
        elif self._tells_usage:
            chunk["usage"] = None
        return f"data: {dumps(chunk)}\n\n".encode()

    def _usage(self, ends: Sequence[Sequence[Ended]]) -> bytes:
        usage = _sum([total([end.usage for end in of_one]) for of_one in ends])
        chunk: dict[str, Any] = {**self._head(), "choices": [], "usage": usage_body(usage)}
        if len(ends) == 1:
            chunk["timings"] = timings_body(ends[0][0].usage, ends[0][0].timings)
        return f"data: {dumps(chunk)}\n\n".encode()

    def _reason(self, end: Ended) -> str:
        return "length" if self._body.only_scores else end.reason

    def _number(self, number: int, index: int) -> int:
        """The number of an answer among those of all prompts."""
        return number * self._body.outputs + index

    def _new_lists(self) -> LogprobLists:
        return LogprobLists(
            self._tokenizer, self._body.logprobs or 0, self._body.skip_special_tokens is False
        )

    def _prompt_lists(self, lists: LogprobLists, number: int, scored: PromptScored) -> dict[str, Any]:
        is_text = isinstance(self._body.prompts[number], str)
        return lists.prompt(self._batch.prompts[number], scored.logprobs, is_text)

    def _prompt_text(self, number: int) -> str:
        """The prompt as it was given, or the text of its tokens."""
        prompt = self._body.prompts[number]
        if isinstance(prompt, str):
            return prompt
        known = [token for token in prompt if token < self._tokenizer.vocab_size]
        return self._tokenizer.decode(known, skip_control=self._body.skip_special_tokens is not False)


def _sum(usages: Sequence[Usage]) -> Usage:
    """The tokens of several prompts and their outputs."""
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.draft_tokens for usage in usages),
        sum(usage.accepted_tokens for usage in usages),
    )
