"""Anthropic's interface, asked by its own client and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Timer
from typing import Any

import anthropic
import httpx
import pytest

from corral.model.presets import DEFAULT_MODEL
from corral.server.anthropic.blocks import MessageBody
from corral.server.anthropic.content import ContentBlocks
from corral.text.messages import Message, ToolCall
from corral.text.tool_calls import CallArguments, CallBegun, CallEnded, TextPiece
from tests.server.full_queue import full_queue, narrow_server
from tests.server.live_server import LiveServer

HTTP = httpx.Client(timeout=60)
ASK: Any = [{"role": "user", "content": "What is the capital of France? One sentence."}]
GREEDY: Any = {"temperature": 0}
CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
VISIT: Any = {"name": "visit", "description": "Goes to a city", "input_schema": CITY}
MAP: Any = {"name": "map", "description": "Shows a city", "input_schema": CITY}
FIELDS: Any = {"model": DEFAULT_MODEL, "max_tokens": 20, "messages": ASK}


@pytest.fixture
def client(server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.base_url, api_key="none", max_retries=0)


def post(server: LiveServer, **fields: Any) -> httpx.Response:
    return HTTP.post(f"{server.base_url}/v1/messages", json={**FIELDS, **fields})


def events_of(server: LiveServer, **fields: Any) -> list[tuple[str, Any]]:
    """The names and data of a stream's events."""
    answer = post(server, stream=True, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in answer.text.split("\n\n"):
        if event:
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


def test_a_dialog_is_answered(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**FIELDS, extra_body=GREEDY)
    (block,) = answer.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (answer.role, answer.model, answer.stop_reason) == ("assistant", DEFAULT_MODEL, "end_turn")
    assert answer.usage.output_tokens > 0


def test_tokens_are_counted_as_the_answer_counts_them(client: anthropic.Anthropic) -> None:
    prompt: Any = {"model": DEFAULT_MODEL, "messages": ASK, "system": "Be brief.", "tools": [VISIT]}
    counted = client.messages.count_tokens(**prompt).input_tokens
    usage = client.messages.create(**prompt, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model=DEFAULT_MODEL, messages=ASK).input_tokens < counted


def test_cached_prefixes_are_told(client: anthropic.Anthropic) -> None:
    long = [{"type": "text", "text": "Count. " * 60, "cache_control": {"type": "ephemeral"}}]
    fields: Any = {**FIELDS, "system": long, "max_tokens": 1}
    client.messages.create(**fields)
    again = client.messages.create(**fields).usage
    assert again.cache_read_input_tokens is not None
    assert again.cache_read_input_tokens > 60 > again.input_tokens > 0


def test_why_an_answer_ends_is_told(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(**{**FIELDS, "max_tokens": 2})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    stopped = client.messages.create(**FIELDS, stop_sequences=["Paris", "London"], extra_body=GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in stopped.content[0].text


def test_a_full_context_is_told_from_a_full_answer(small_server: LiveServer) -> None:
    def dialog(words: int) -> Any:
        return {"model": "small", "messages": [{"role": "user", "content": "a " * words}]}

    def count(words: int) -> int:
        url = f"{small_server.base_url}/v1/messages/count_tokens"
        answer = HTTP.post(url, json=dialog(words))
        return int(answer.json()["input_tokens"])

    longest = small_server.service.llm.max_model_len
    per_word = (count(200) - count(100)) // 100
    words = 100 + (longest - 2 - count(100)) // per_word
    room = longest - count(words)
    assert 2 <= room < 8
    body = {**dialog(words), "max_tokens": 20, "temperature": 0}
    answer = HTTP.post(f"{small_server.base_url}/v1/messages", json=body).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["usage"]["output_tokens"] == room


def test_a_stream_has_anthropics_events_in_their_order(server: LiveServer) -> None:
    events = events_of(server, temperature=0)
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    start, end = events[0][1]["message"], events[-2][1]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    whole = post(server, temperature=0).json()
    assert "".join(data["delta"]["text"] for name, data in events[3:-3]) == whole["content"][0]["text"]
    assert end["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_the_clients_stream_adds_up(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**FIELDS, extra_body=GREEDY)
    with client.messages.stream(**FIELDS, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "visit"}])
def test_tools_are_called_where_they_must_be(client: anthropic.Anthropic, choice: Any) -> None:
    fields: Any = {**FIELDS, "max_tokens": 100, "tools": [MAP, VISIT]}
    fields["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
    answer = client.messages.create(**fields)
    (call,) = answer.content
    assert call.type == "tool_use"
    assert call.name == "visit" if "name" in choice else call.name in ("visit", "map")
    assert call.input["city"] in ("Paris", "Rome")
    assert answer.stop_reason == "tool_use"
    with client.messages.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds
    (streamed,) = final.content
    assert streamed.type == "tool_use"
    assert streamed.input["city"] in ("Paris", "Rome")


def test_a_tools_result_is_heard(client: anthropic.Anthropic) -> None:
    fields: Any = {**FIELDS, "tools": [VISIT], "max_tokens": 100}
    called = client.messages.create(**fields, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    call = called.content[0]
    assert call.type == "tool_use"
    result: Any = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": "Rain."}],
    }
    dialog: Any = [
        *ASK,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    answer = client.messages.create(**{**fields, "messages": dialog}, tool_choice={"type": "none"})
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert all(block.type == "text" for block in answer.content)


def test_the_answer_goes_on_from_what_it_is_given(client: anthropic.Anthropic) -> None:
    begun: Any = [*ASK, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(model=DEFAULT_MODEL, max_tokens=4, messages=begun, extra_body=GREEDY)
    assert answer.content[0].text.startswith(" Paris")  # type: ignore[union-attr]


def test_an_answer_has_the_form_that_is_asked_for(client: anthropic.Anthropic) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": CITY}}
    answer = client.messages.create(**{**FIELDS, "max_tokens": 40}, output_config=form)
    assert json.loads(answer.content[0].text)["city"] in ("Paris", "Rome")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def user(*blocks: Any) -> Any:
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": []}, "messages: "),
        ({"messages": user(IMAGE)}, "messages[0].content[0]: a block of type 'image' cannot be read here"),
        ({"messages": user({"type": "text"})}, "messages[0].content[0].text is missing"),
        (
            {"messages": user({"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]})},
            "messages[0].content[0].content[0]: a block of type 'image'",
        ),
        (
            {"messages": user({"type": "tool_use", "id": "a", "name": "b", "input": {}})},
            "messages[0].content: a tool_use block does not belong to the user",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": ""}]}
                ]
            },
            "messages[0].content[0]: a block of type 'thinking' cannot be read here",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}],
                    }
                ]
            },
            "messages: the last one calls tools",
        ),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role: "),
        ({"system": [IMAGE]}, "system[0]: a block of type 'image'"),
        ({"temperature": 1.5}, "temperature: "),
        ({"top_p": 2.0}, "top_p "),
        ({"top_k": -5}, "top_k "),
        ({"stop_sequences": [""]}, "stop_sequences holds ''"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences has 65 texts"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking: this model does not think"),
        ({"thinking": {"type": "adaptive"}}, "thinking: this model does not think"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]: tools of type 'bash_20250124'"),
        ({"tools": [VISIT, VISIT]}, "tools: 'visit' is there twice"),
        ({"tools": [{**VISIT, "name": "a b"}]}, "tools[0].name: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: it asks for a call"),
        (
            {"tools": [VISIT], "tool_choice": {"type": "tool", "name": "x"}},
            "tool_choice: 'x' is not among tools",
        ),
        ({"tools": [VISIT], "tool_choice": {"type": "tool"}}, "tool_choice: a name goes with the type tool"),
        (
            {"tools": [VISIT], "tool_choice": {"type": "any", "name": "visit"}},
            "tool_choice: a name goes with",
        ),
        ({"output_config": {"effort": "low"}}, "output_config.effort: "),
        ({"container": "c"}, "container: "),
        ({"mcp_servers": []}, "mcp_servers is no field that this server knows"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: LiveServer, fields: Any, sentence: str) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 400
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["message"].startswith(sentence)


def test_what_asks_for_nothing_is_taken(server: LiveServer) -> None:
    taken = {
        "metadata": {"user_id": "one"},
        "service_tier": "auto",
        "thinking": {"type": "disabled"},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "system": [{"type": "text", "text": "Be brief.", "citations": None}],
        "tools": [
            {**VISIT, "type": "custom", "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}
        ],
        "tool_choice": {"type": "none"},
        "container": None,
        "top_k": 5,
        "top_p": 0.9,
        "max_tokens": 1,
    }
    assert post(server, **taken).status_code == 200


def test_errors_reach_the_client_as_what_they_are(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**FIELDS, "model": "another"})
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(**FIELDS, extra_body={"surprise": 1})
    assert bad.value.type == "invalid_request_error"


def test_an_error_in_mid_stream_is_told(client: anthropic.Anthropic, server: LiveServer) -> None:
    endless: Any = [{"role": "user", "content": "Count from 1 to 1000."}]
    with client.messages.stream(model=DEFAULT_MODEL, max_tokens=4000, messages=endless) as stream:
        next(event for event in stream if event.type == "content_block_delta")
        server.loop.call_soon_threadsafe(server.service.end_running, "the server is shutting down")
        with pytest.raises(anthropic.APIStatusError) as caught:
            list(stream)
    assert caught.value.type == "overloaded_error"
    assert caught.value.api_message == "the server is shutting down"


def test_a_full_queue_is_tried_again(tmp_path: Path) -> None:
    with narrow_server(tmp_path) as narrow:
        fields: Any = {"model": "narrow", "max_tokens": 1, "messages": ASK}
        client = anthropic.Anthropic(base_url=narrow.base_url, api_key="none", max_retries=0)
        held = full_queue(narrow)
        held.__enter__()
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**fields)
        assert caught.value.response.headers["retry-after"] == "1"
        release = Timer(0.2, held.__exit__, (None, None, None))
        release.start()
        assert client.with_options(max_retries=5).messages.create(**fields).usage.output_tokens == 1
        release.join()


def test_messages_keep_calls_results_and_texts_apart() -> None:
    def read(role: str, *blocks: Any) -> list[Message]:
        return MessageBody.model_validate({"role": role, "content": list(blocks)}).messages()

    text, more = {"type": "text", "text": "one"}, {"type": "text", "text": "two"}
    call = {
        "type": "tool_use",
        "id": "c1",
        "name": "visit",
        "input": {"city": "Rome"},
        "caller": {"type": "direct"},
    }
    made = ToolCall("visit", {"city": "Rome"}, "c1")
    assert read("assistant", text, call) == [Message("assistant", "one", (made,))]
    assert read("user", text, more) == [Message("user", "one\ntwo")]
    fine = {"type": "tool_result", "tool_use_id": "c1", "content": "sun"}
    failed = {"type": "tool_result", "tool_use_id": "c2", "is_error": True, "content": [text]}
    assert read("user", fine, failed) == [
        Message("tool", "sun", tool_call_id="c1"),
        Message("tool", "Error: one", tool_call_id="c2"),
    ]
    assert read("user", {"type": "tool_result", "tool_use_id": "c1"}, more) == [
        Message("tool", "", tool_call_id="c1"),
        Message("user", "two"),
    ]


def test_blocks_are_the_same_in_the_stream_and_in_the_whole() -> None:
    pieces: Any = [
        TextPiece("I "),
        TextPiece("look."),
        CallBegun(0, "c1", "visit"),
        CallArguments(0, '{"city": '),
        CallArguments(0, '"Rome"}'),
        CallEnded(0, ToolCall("visit", {"city": "Rome"}, "c1"), '{"city": "Rome"}'),
        CallBegun(1, "c2", "visit"),
        CallArguments(1, '{"ci'),
        CallEnded(1, None, '{"ci', error="cut off"),
        TextPiece("Done."),
    ]
    blocks = ContentBlocks()
    events = [*blocks.add(pieces), *blocks.close()]
    assert blocks.whole() == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "visit", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "c2", "name": "visit", "input": {"INVALID_JSON": '{"ci'}},
        {"type": "text", "text": "Done."},
    ]
    told = [(event["type"].removeprefix("content_block_"), event["index"]) for event in events]
    text, call = ["start", "delta", "delta", "stop"], ["start", "delta", "stop"]
    assert [index for _, index in told] == [0] * 4 + [1] * 4 + [2] * 3 + [3] * 3
    assert [kind for kind, _ in told] == [*text, *text, *call, *call]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [start.get("input", start.get("text")) for start in starts] == ["", {}, {}, ""]
