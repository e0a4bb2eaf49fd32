"""`/v1/chat/completions`, asked by the real clients."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai import OpenAI

from corral.llm import LLM
from corral.model.presets import DEFAULT_MODEL
from tests.server.live_server import LiveServer

FRANCE: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "description": "The time."}}
PERSON: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": DEFAULT_MODEL, "messages": FRANCE, "max_tokens": 24, "temperature": 0, **fields}
    )


def test_an_answer_is_what_the_engine_gives(client: OpenAI, server: LiveServer) -> None:
    llm = server.service.llm
    params = llm.default_sampling_params()
    (expected,) = llm.chat(FRANCE, params)
    answer = ask(client)
    (choice,) = answer.choices
    assert choice.message.content == expected.outputs[0].text
    assert (choice.finish_reason, choice.message.role, choice.message.tool_calls) == (
        "stop",
        "assistant",
        None,
    )
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.outputs[0].token_ids)
    assert answer.usage.prompt_tokens_details.cached_tokens > 0  # the same prompt has just been run
    assert answer.model == DEFAULT_MODEL
    assert answer.timings["predicted_n"] == answer.usage.completion_tokens


def test_a_stream_joined_is_the_answer_in_one_piece(client: OpenAI) -> None:
    poem: Any = [{"role": "user", "content": "Write a poem."}]
    fields: Any = {
        "messages": poem,
        "n": 2,
        "temperature": 1.2,
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = ask(client, **fields)
    texts, reasons, usage = ["", ""], {}, None
    ids: list[list[str]] = [[], []]
    for chunk in ask(client, **fields, stream=True, stream_options={"include_usage": True}):
        if not chunk.choices:
            usage = chunk.usage
            continue
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.logprobs is not None:
            ids[choice.index] += [at.token for at in choice.logprobs.content]
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert ids == [[at.token for at in choice.logprobs.content] for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert texts[0] != texts[1]


def test_usage_comes_with_every_chunk_where_it_is_asked_for(client: OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c.usage.completion_tokens for c in ask(client, stream=True, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > 4


def test_logprobs_are_the_models(client: OpenAI, server: LiveServer) -> None:
    content = ask(client, logprobs=True, top_logprobs=3, max_tokens=6).choices[0].logprobs.content
    assert len(content) == 6
    for at in content:
        assert bytes(at.bytes).decode() == at.token
        assert len(at.top_logprobs) == 3
        assert at.top_logprobs[0].logprob == pytest.approx(at.logprob)  # greedy takes the best
        assert sum(math.exp(top.logprob) for top in at.top_logprobs) <= 1 + 1e-6
    llm: LLM = server.service.llm
    prompt = llm.render(FRANCE).tokens
    ids = [i for at in content for i in llm.tokenizer.encode(at.token)]
    scored = llm.score([*prompt, *ids])[0].token_logprobs[-len(ids) :]
    assert [at.logprob for at in content] == pytest.approx(list(scored), abs=1e-4)


def test_the_prompts_logprobs_come_with_the_answer(client: OpenAI) -> None:
    answer = ask(client, max_tokens=1, extra_body={"prompt_logprobs": 1})
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens
    assert all(1 <= len(at) <= 2 for at in answer.prompt_logprobs[1:])


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_follows_its_schema(client: OpenAI, stream: bool) -> None:
    fields: Any = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "max_tokens": 100, "stream": stream}
    fields["parallel_tool_calls"] = False
    answer = ask(client, **fields)
    name, arguments, reason = called(answer) if stream else read(answer)
    assert name in ("get_weather", "clock")
    assert reason == "tool_calls"
    schema = WEATHER["function"]["parameters"] if name == "get_weather" else {"type": "object"}
    jsonschema.validate(json.loads(arguments), schema)


def called(chunks: Any) -> tuple[str, str, str]:
    """The one call of a stream, put together as the client's documentation says."""
    name, arguments, reason = "", "", ""
    for chunk in chunks:
        (choice,) = chunk.choices
        for call in choice.delta.tool_calls or ():
            assert call.index == 0
            if call.id:
                assert call.type == "function"
                name += call.function.name
            arguments += call.function.arguments or ""
        reason = choice.finish_reason or reason
    return name, arguments, reason


def read(answer: Any) -> tuple[str, str, str]:
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.message.content is None
    return call.function.name, call.function.arguments, choice.finish_reason


def test_a_named_tool_is_called(client: OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(client, tools=[CLOCK, WEATHER], tool_choice=choice, max_tokens=200)
    assert {call.function.name for call in answer.choices[0].message.tool_calls} == {"get_weather"}


def test_the_result_of_a_call_is_part_of_the_dialog(client: OpenAI) -> None:
    """What the client gets, it sends back as it is; with the result, the model answers in words."""
    first = ask(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=100)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"temperature": 21}'}
    answer = ask(client, messages=[*FRANCE, message, result], tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > ask(client, max_tokens=1).usage.prompt_tokens + 10


def test_no_tool_is_called_where_none_may_be(client: OpenAI) -> None:
    answer = ask(client, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens  # they are not even shown


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}},
        {"response_format": {"type": "json", "value": PERSON}},
        {"extra_body": {"guided_json": PERSON}},
        {"extra_body": {"structured_outputs": {"json": PERSON}}},
    ],
    ids=["json_schema", "json", "guided_json", "structured_outputs"],
)
def test_an_answer_follows_its_schema(client: OpenAI, fields: Any) -> None:
    answer = ask(client, messages=[{"role": "user", "content": "Invent a person."}], max_tokens=80, **fields)
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)


def test_a_schema_and_tools_go_together(client: OpenAI) -> None:
    """Either a call or an answer, and each follows its own schema."""
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = ask(client, tools=[WEATHER], response_format=form, max_tokens=120, parallel_tool_calls=False)
    message = answer.choices[0].message
    if message.tool_calls:
        jsonschema.validate(
            json.loads(message.tool_calls[0].function.arguments), WEATHER["function"]["parameters"]
        )
    else:
        jsonschema.validate(json.loads(message.content), PERSON)


def test_a_parsed_answer_is_an_object_of_its_class(client: OpenAI) -> None:
    from pydantic import BaseModel

    class Choice(BaseModel):
        agree: bool

    parsed = client.chat.completions.parse(
        model=DEFAULT_MODEL, messages=FRANCE, response_format=Choice, max_completion_tokens=40, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Choice)


def test_other_forms_are_held_to(client: OpenAI) -> None:
    def words(**extra: Any) -> str:
        return str(ask(client, extra_body=extra).choices[0].message.content)

    assert words(guided_choice=["yes", "no"]) in ("yes", "no")
    assert words(guided_regex="[0-9]{3}").isdigit()
    assert words(structured_outputs={"grammar": 'start: "ab" | "cd"'}) in ("ab", "cd")


def test_sampling_fields_do_what_they_say(client: OpenAI, server: LiveServer) -> None:
    plain = ask(client).choices[0].message.content
    comma = ask(client, stop=["capital"]).choices[0]
    assert (comma.message.content, comma.finish_reason) == (plain.split("capital")[0], "stop")
    assert comma.stop_reason == "capital"
    kept = ask(client, stop="capital", extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == plain.split("capital")[0] + "capital"
    (paris,) = server.service.llm.tokenizer.encode(" Paris")
    assert "Paris" not in ask(client, logit_bias={str(paris): -100}).choices[0].message.content
    short = ask(client, max_tokens=None, max_completion_tokens=2).choices[0]
    assert short.finish_reason == "length"
    warm = {"temperature": 1.5, "seed": 3}
    assert ask(client, **warm).choices[0].message.content == ask(client, **warm).choices[0].message.content
    long = ask(client, extra_body={"min_tokens": 20, "ignore_eos": True}, max_tokens=20)
    assert long.usage.completion_tokens == 20


def test_a_begun_answer_is_continued(client: OpenAI) -> None:
    begun: Any = [*FRANCE, {"role": "assistant", "content": "The capital of"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    answer = ask(client, messages=begun, extra_body=extra).choices[0].message.content
    assert answer.startswith(" France is Paris")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            None,
        ),
        ({"messages": [{"role": "cook", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nope"}}},
            "tool_choice",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"guided_json": {}, "guided_regex": "a"}}, "guided_json"),
        ({"extra_body": {"prompt_logprobs": 1, "stream": True}}, "prompt_logprobs"),
        ({"extra_body": {"documents": [{"text": "x"}]}}, None),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, None),
        ({"extra_body": {"tool_prompt": "x"}}, "tool_prompt"),
        ({"store": True}, "store"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"extra_body": {"top_kk": 1}}, "top_kk"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_field_is_refused_by_its_name(client: OpenAI, fields: Any, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.response.headers["x-should-retry"] == "false"
    if param is not None:
        assert error.param == param
    assert "Traceback" not in error.message


def test_a_model_that_is_not_served_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        ask(client, model="gpt-4o")


def test_a_prompt_that_is_too_long_is_refused_in_tokens(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the context has room for"):
        ask(client, messages=[{"role": "user", "content": "word " * 9000}])


def test_a_body_that_is_no_json_is_refused(server: LiveServer) -> None:
    url = f"{server.base_url}/v1/chat/completions"
    for body in (b"{", b"", b"[]", b'"text"', b"\xff\xfe"):
        answer = httpx.post(url, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_half_a_surrogate_pair_does_no_harm(server: LiveServer) -> None:
    url = f"{server.base_url}/v1/chat/completions"
    body = b'{"messages": [{"role": "user", "content": "a \\ud800 b"}], "max_tokens": 2, "model": "\\udfff"}'
    headers = {"content-type": "application/json"}
    assert httpx.post(url, content=body, headers=headers).status_code == 404
    fine = body.replace(b', "model": "\\udfff"', b"")
    assert httpx.post(url, content=fine, headers=headers).status_code in (200, 400)


def test_the_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == DEFAULT_MODEL
    assert client.models.retrieve(DEFAULT_MODEL) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")
