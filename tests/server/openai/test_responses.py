"""`/v1/responses`, asked by the real client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import BaseModel

from corral.model.presets import DEFAULT_MODEL
from corral.server.openai.responses_body import ResponseBody
from tests.engine.engines import wait_until
from tests.server.conftest import LiveServer

QUESTION = "What is the capital of France? Answer in one sentence."
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "celsius": {"type": "boolean"}},
        "required": ["city", "celsius"],
        "additionalProperties": False,
    },
    "strict": True,
}
CLOCK: Any = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
LOGPROBS: Any = ["message.output_text.logprobs"]
ENDS = {"response.completed", "response.incomplete", "response.failed"}


class Place(BaseModel):
    city: str
    is_capital: bool


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, **fields: Any) -> Any:
    """What the server answers; greedy and short unless said otherwise."""
    return client.responses.create(
        **{"model": DEFAULT_MODEL, "input": QUESTION, "max_output_tokens": 40, "temperature": 0, **fields}
    )


def without_ids(value: Any) -> Any:
    """A part of an answer without what differs from one answer to the next."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        kept = {"id", "call_id", "created_at", "completed_at", "timings", "input_tokens_details"}
        return {name: without_ids(part) for name, part in value.items() if name not in kept}
    return [without_ids(part) for part in value] if isinstance(value, list) else value


def test_an_answer_is_what_the_engine_gives(client: OpenAI, server: LiveServer) -> None:
    llm = server.service.llm
    (expected,) = llm.chat([{"role": "user", "content": QUESTION}], use_tqdm=False)
    answer = ask(client)
    assert answer.output_text == expected.outputs[0].text
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = answer.usage
    assert usage.input_tokens == len(expected.prompt_token_ids)
    assert usage.output_tokens == len(expected.outputs[0].token_ids)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert answer.store is False
    counted = client.responses.input_tokens.count(model=DEFAULT_MODEL, input=QUESTION)
    assert counted.input_tokens == usage.input_tokens


def test_what_was_asked_for_stands_in_the_answer(client: OpenAI) -> None:
    fields: Any = {
        "instructions": "Be brief.",
        "metadata": {"project": "seven"},
        "max_output_tokens": 3,
        "max_tool_calls": 2,
        "parallel_tool_calls": False,
        "prompt_cache_key": "key",
        "safety_identifier": "someone",
        "temperature": 0.5,
        "tool_choice": "none",
        "top_p": 0.9,
        "truncation": "auto",
        "user": "somebody",
    }
    answer = ask(client, **fields, tools=[CLOCK], reasoning={"effort": "none"}, text={"verbosity": "medium"})
    given = answer.model_dump()
    assert {name: given[name] for name in fields} == fields
    assert given["tools"] == [
        {
            **CLOCK,
            "description": None,
            "strict": False,
            **dict.fromkeys(set(given["tools"][0]) - {*CLOCK, "description", "strict"}),
        }
    ]
    assert answer.text.format.type == "text"


@pytest.mark.parametrize("fields", [{}, {"include": LOGPROBS, "top_logprobs": 2}, {"max_output_tokens": 3}])
def test_a_stream_tells_the_answer_step_by_step(client: OpenAI, fields: dict[str, Any]) -> None:
    events = list(ask(client, stream=True, **fields))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    end = "incomplete" if "max_output_tokens" in fields else "completed"
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", end),
    ]
    first, last = events[0].response, events[-1].response
    assert (first.status, first.output, first.usage) == ("in_progress", [], None)
    assert {event.item_id for event in deltas} == {last.output[0].id}
    done = next(event for event in events if event.type == "response.output_text.done")
    assert "".join(event.delta for event in deltas) == done.text == last.output_text
    told = [at.token for event in deltas for at in event.logprobs]
    assert "".join(told) == (last.output_text if fields.get("include") else "")
    assert without_ids(last) == without_ids(ask(client, **fields))


def test_an_answer_that_was_cut_off_is_incomplete(client: OpenAI) -> None:
    answer = ask(client, max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    assert answer.usage.output_tokens == 3


def test_logprobs_come_with_the_text(client: OpenAI) -> None:
    part = ask(client, include=LOGPROBS, top_logprobs=3).output[0].content[0]
    shown = [at for at in part.logprobs if not at.token.startswith("<|")]
    assert "".join(at.token for at in shown) == part.text
    assert bytes(byte for at in shown for byte in at.bytes).decode() == part.text
    for at in part.logprobs:
        assert len(at.top_logprobs) == 3
        assert at.logprob == at.top_logprobs[0].logprob  # greedy
    assert ask(client).output[0].content[0].logprobs == []


def test_an_answer_follows_a_schema(client: OpenAI) -> None:
    answer = client.responses.parse(model=DEFAULT_MODEL, input=QUESTION, text_format=Place, temperature=0)
    assert isinstance(answer.output_parsed, Place)
    with client.responses.stream(
        model=DEFAULT_MODEL, input=QUESTION, text_format=Place, temperature=0
    ) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_parsed == answer.output_parsed
    assert snapshots[-1] == final.output_text == answer.output_text


def test_a_call_is_an_item_and_its_result_goes_back(client: OpenAI) -> None:
    fields: Any = {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "name": "get_weather"}}
    question: Any = {"role": "user", "content": "What is the weather in Rome?"}
    answer = ask(client, input=[question], **fields, parallel_tool_calls=False)
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    arguments = json.loads(call.arguments)
    assert arguments["city"] in ("Paris", "Rome")
    assert isinstance(arguments["celsius"], bool)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 31 degrees"}
    told = ask(client, input=[question, call.model_dump(exclude_none=True), result])
    assert told.output_text
    assert told.usage.input_tokens > ask(client, input=[question]).usage.input_tokens


def test_a_stream_tells_calls_step_by_step(client: OpenAI) -> None:
    fields: Any = {"tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 120}
    with client.responses.stream(model=DEFAULT_MODEL, input="Weather?", temperature=0, **fields) as stream:
        events = list(stream)
        final = stream.get_final_response()
    fragments: dict[str, str] = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            fragments[event.item_id] = fragments.get(event.item_id, "") + event.delta
        elif event.type == "response.function_call_arguments.done":
            assert event.arguments == fragments[event.item_id]
    calls = [item for item in final.output if item.type == "function_call"]
    assert calls
    assert {call.id: call.arguments for call in calls} == fragments
    assert calls[0].parsed_arguments == json.loads(calls[0].arguments)
    assert without_ids(final.output[0].model_dump(exclude={"parsed_arguments"})) == without_ids(
        ask(client, input="Weather?", **fields).output[0]
    )


def test_only_allowed_tools_are_called(client: OpenAI) -> None:
    choice: Any = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "clock"}],
    }
    answer = ask(client, tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False)
    assert [item.name for item in answer.output] == ["clock"]
    assert answer.tool_choice.model_dump() == choice


def test_a_dialog_that_is_too_long_loses_its_first_turns(small_server: LiveServer) -> None:
    client = OpenAI(base_url=f"{small_server.base_url}/v1", api_key="none", max_retries=0)
    turns: list[Any] = []
    for number in range(8):
        turns += [
            {"role": "user", "content": f"{number} " + "fox " * 300},
            {"role": "assistant", "content": "ok"},
        ]
    last: Any = {"role": "user", "content": "Say ok"}
    fields: Any = {"model": "small", "instructions": "Be brief.", "max_output_tokens": 5}
    with pytest.raises(openai.BadRequestError, match="shorten the prompt"):
        client.responses.create(input=[*turns, last], **fields)
    short = client.responses.create(input=[*turns, last], truncation="auto", **fields)
    kept = [
        client.responses.input_tokens.count(
            model="small", instructions="Be brief.", input=[*turns[start:], last]
        )
        for start in range(0, 16, 2)
    ]
    fitting = [count.input_tokens for count in kept if count.input_tokens <= 2048 - 5]
    assert short.usage is not None
    assert short.usage.input_tokens == max(fitting)
    assert len(fitting) < 8
    with pytest.raises(openai.BadRequestError, match="shorten the prompt"):
        client.responses.create(input="fox " * 3000, truncation="auto", **fields)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"input": []}, "input", "empty"),
        ({"store": True}, "store", "keeps no responses"),
        ({"background": True}, "background", "keeps no responses"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole dialog"),
        ({"conversation": "conv_1"}, "conversation", "send the whole dialog"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "keeps no prompts"),
        ({"moderation": {"model": "m"}}, "moderation", "no such service"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "truncation"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention", "in memory only"),
        ({"service_tier": "flex"}, "service_tier", "auto"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "no such setting"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "no such setting"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
        ({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "text.format", "only one form"),
        ({"include": ["file_search_call.results"]}, "include[0]", "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a", "512"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1"),
        ({"max_tokens": 3}, "max_tokens", "max_output_tokens"),
        ({"n": 2}, "n", "one response"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "/v1/completions"),
        ({"messages": []}, "messages", "no field"),
        ({"truncation": "middle"}, "truncation", "auto"),
        ({"stream_options": {}}, "stream_options", "set stream"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "pads",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools[0].defer_loading", "False"),
        ({"tools": [CLOCK, CLOCK]}, "tools", "twice"),
        ({"tool_choice": "required"}, "tool_choice", "give tools"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "among tools"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "f"}],
                }
            },
            "tool_choice.tools",
            "among tools",
        ),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input[0]", "does not reason"),
        ({"input": [{"type": "item_reference", "id": "r"}]}, "input[0]", "keeps no items"),
        ({"input": [{"type": "computer_call"}]}, "input[0]", "this server takes message"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role", "user"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "input_text",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id",
            "call_id",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[" * 9999}]},
            "input[0].arguments",
            "JSON",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(
    small_server: LiveServer, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = httpx.post(f"{small_server.base_url}/v1/responses", json={"input": "x", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


def test_every_field_of_openais_interface_is_known() -> None:
    assert set(ResponseCreateParamsBase.__annotations__) <= set(ResponseBody.model_fields)


def test_what_fails_on_the_way_is_told_in_the_last_event(client: OpenAI, server: LiveServer) -> None:
    late: Any = {"max_output_tokens": 4000, "extra_headers": {"x-request-timeout": "0.2"}}
    late["extra_body"] = {"ignore_eos": True}
    with pytest.raises(openai.APIStatusError) as refusal:
        ask(client, **late)
    assert refusal.value.status_code == 408
    events = list(ask(client, stream=True, **late))
    assert [event.type for event in events if event.type in ENDS] == ["response.failed"]
    failed = events[-1].response
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert failed.output_text == text
    assert {item.status for item in failed.output} <= {"incomplete"}
    engine = server.service.llm.engine
    wait_until(lambda: not server.service.num_running and not engine.stats().blocks_used)


def test_nothing_is_kept(small_server: LiveServer) -> None:
    client = OpenAI(base_url=f"{small_server.base_url}/v1", api_key="none", max_retries=0)
    answer: Any = client.responses.create(model="small", input="x", max_output_tokens=2, store=False)
    for look_up in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError, match="this server keeps no responses"):
            list(look_up(answer.id))  # type: ignore[arg-type]
