"""Making an answer: requests to the API, the page's own tools run in between, and how long it all took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from corral.server.page.api import Api, ApiFailure
from corral.server.page.conversation import Call, ChatMessage, Conversation, Stats
from corral.server.page.tools import declared_tools, run_own_tool

MAX_ROUNDS = 8  # answers in a row to results of the page's own tools


async def answer(
    api: Api, conversation: Conversation, stop: asyncio.Event, context_length: int | None
) -> AsyncGenerator[None]:
    """Answer the last message of `conversation`, in place; yields after each change.

    Failures become part of the conversation. Ends early, with what there is, when `stop` is set.
    """
    for _ in range(MAX_ROUNDS):
        async with aclosing(_one_answer(api, conversation, stop, context_length)) as changes:
            async for _ in changes:
                yield
        if stop.is_set() or conversation.messages[-1].error or not _run_own_calls(conversation):
            return
        yield
    conversation.messages.append(
        ChatMessage(
            role="assistant", error=f"The model called tools {MAX_ROUNDS} times in a row, and was stopped."
        )
    )
    yield


def _run_own_calls(conversation: Conversation) -> bool:
    """Run the calls of the page's own tools. True if the model can now go on."""
    calls = conversation.open_calls()
    for call in calls:
        if call.name not in conversation.settings.tools:
            continue
        result = run_own_tool(call.name, call.arguments)
        if result is not None:
            conversation.give_result(call, result)
    return bool(calls) and not conversation.open_calls()


async def _one_answer(
    api: Api, conversation: Conversation, stop: asyncio.Event, context_length: int | None
) -> AsyncGenerator[None]:
    """One request: its answer grows at the end of the conversation."""
    stats = Stats(model=conversation.settings.model, context_length=context_length)
    # Until it ends it counts as stopped: that is what the browser keeps of it, should the page be closed.
    message = ChatMessage(role="assistant", stopped=True, stats=stats)
    began = time.perf_counter()
    conversation.messages.append(message)
    yield
    try:
        body = _body(conversation)
        async with aclosing(_until(stop, api.chunks(body))) as chunks:
            async for chunk in chunks:
                if _take(chunk, message, stats) and stats.first_token_s is None:
                    stats.first_token_s = time.perf_counter() - began
                stats.total_s = time.perf_counter() - began
                yield
    except ApiFailure as failure:
        message.error = failure.message
        if failure.status == 401:
            message.error += " Enter your API key under Settings, and ask again."
    except (httpx.HTTPError, ValueError) as failure:
        message.error = str(failure) or type(failure).__name__
    message.stopped = stats.finish_reason is None and not message.error
    if message.stopped or message.error:
        message.calls.clear()  # what was cut off cannot be answered
    if message.error and stats.first_token_s is None:
        message.stats = None
    yield


async def _until(
    stop: asyncio.Event, chunks: AsyncGenerator[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any]]:
    """The chunks until `stop` is set, even in the midst of waiting for one; the request is cancelled then."""
    stopping = asyncio.ensure_future(stop.wait())
    waiting: asyncio.Task[dict[str, Any]] | None = None
    try:
        while not stop.is_set():
            waiting = asyncio.ensure_future(anext(chunks))
            await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return
            try:
                yield waiting.result()
            except StopAsyncIteration:
                return
    finally:
        stopping.cancel()
        if waiting is not None and not waiting.done():
            waiting.cancel()
            await asyncio.wait([waiting])
        await chunks.aclose()


def _body(conversation: Conversation) -> dict[str, Any]:
    """The chat completion to ask for. Sampling that nobody touched is left to the server."""
    settings = conversation.settings
    body: dict[str, Any] = {
        "messages": conversation.for_api(),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.model:
        body["model"] = settings.model
    for name, value in settings.sampling.items():
        body[name] = int(value) if name in ("max_tokens", "top_k", "seed") else value
    if tools := declared_tools(settings.tools, settings.custom_tools):
        body["tools"] = tools
        if settings.must_call and conversation.messages[-2].role == "user":
            body["tool_choice"] = "required"
    return body


def _take(chunk: dict[str, Any], message: ChatMessage, stats: Stats) -> bool:
    """Add a chunk to the message. True if it had something of the answer in it."""
    if usage := chunk.get("usage"):
        stats.prompt_tokens = usage.get("prompt_tokens") or 0
        stats.completion_tokens = usage.get("completion_tokens") or 0
        stats.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in chunk.get("choices") or []:
        stats.finish_reason = choice.get("finish_reason") or stats.finish_reason
        delta = choice.get("delta") or {}
        message.content += delta.get("content") or ""
        for part in delta.get("tool_calls") or []:
            _take_call(part, message)
        return bool(delta.get("content") or delta.get("tool_calls"))
    return False


def _take_call(part: dict[str, Any], message: ChatMessage) -> None:
    function = part.get("function") or {}
    index = part["index"]
    if index == len(message.calls):
        message.calls.append(Call(id=part.get("id") or f"call_{index}", name=function.get("name") or ""))
    message.calls[index].arguments += function.get("arguments") or ""
