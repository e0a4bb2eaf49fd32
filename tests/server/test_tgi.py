"""TGI's interface, asked by Hugging Face's client and by hand."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

from corral.model.presets import DEFAULT_MODEL
from tests.server.full_queue import full_queue, narrow_server
from tests.server.live_server import LiveServer

HTTP = httpx.Client(timeout=60)
PROMPT = "The capital of France is"
CHAT = "<|im_start|>user\nWhat is 2+2? One number.<|im_end|>\n<|im_start|>assistant\n"
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: LiveServer) -> Any:
    return InferenceClient(server.base_url)


def generate(server: LiveServer, route: str = "/generate", inputs: str = PROMPT, **parameters: Any) -> Any:
    body = {"inputs": inputs, "parameters": parameters}
    answer = HTTP.post(server.base_url + route, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: LiveServer, inputs: str = PROMPT, **parameters: Any) -> list[Any]:
    """The events of a stream."""
    body = {"inputs": inputs, "parameters": parameters}
    answer = HTTP.post(f"{server.base_url}/generate_stream", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data:")) for event in answer.text.split("\n\n") if event]


def test_a_text_goes_on_greedily_and_only_as_far_as_asked(client: Any, server: LiveServer) -> None:
    text = client.text_generation(PROMPT, max_new_tokens=8)
    assert text.startswith(" Paris")
    assert client.text_generation(PROMPT, max_new_tokens=8) == text
    assert client.text_generation(PROMPT, max_new_tokens=8, return_full_text=True) == PROMPT + text
    assert generate(server, max_new_tokens=8) == {"generated_text": text}
    assert generate(server, "/", max_new_tokens=8) == [{"generated_text": text}]


def test_a_stream_gives_the_same_text_token_by_token(client: Any) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=8, details=True)
    pieces = list(client.text_generation(PROMPT, max_new_tokens=8, stream=True))
    assert len(pieces) == 8
    assert "".join(pieces) == whole.generated_text
    events = list(client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True, top_n_tokens=2))
    assert [event.index for event in events] == list(range(1, 9))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text
    last = events[-1].details
    assert (last.finish_reason, last.generated_tokens, last.input_length) == ("length", 8, 5)
    assert all(event.top_tokens[0]["id"] == event.token.id for event in events)


def test_details_tell_of_the_prompt_and_of_every_token(client: Any) -> None:
    answer = client.text_generation(
        PROMPT, max_new_tokens=4, details=True, decoder_input_details=True, top_n_tokens=3
    )
    details = answer.details
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 4, None)
    assert "".join(token.text for token in details.prefill) == PROMPT
    assert details.prefill[0].logprob is None
    assert all(token.logprob < 0 for token in details.prefill[1:])
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert all(
        len(top) == 3 and top[0]["id"] == t.id
        for top, t in zip(details.top_tokens, details.tokens, strict=True)
    )
    for top in details.top_tokens:
        assert all(better["logprob"] >= worse["logprob"] for better, worse in pairwise(top))


def test_ends_are_told_apart(server: LiveServer) -> None:
    stopped = generate(server, max_new_tokens=20, stop=["."], details=True)
    assert stopped["generated_text"] == " Paris."  # with the stop string, as TGI has it
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    ended = generate(server, inputs=CHAT, max_new_tokens=200, details=True)
    assert ended["details"]["finish_reason"] == "eos_token"
    last = ended["details"]["tokens"][-1]
    assert (last["text"], last["special"]) == ("<|im_end|>", True)
    assert "<|im_end|>" not in ended["generated_text"]


@pytest.mark.parametrize("parameters", [{"stop": ["."]}, {"stop": ["is."], "max_new_tokens": 20}, {}])
def test_the_last_tokens_event_tells_the_end(server: LiveServer, parameters: Any) -> None:
    inputs = PROMPT if parameters else CHAT
    parameters = {"max_new_tokens": 200, **parameters}
    whole = generate(server, inputs=inputs, details=True, **parameters)
    events = stream(server, inputs, **parameters)
    assert len(events) == whole["details"]["generated_tokens"]
    assert "".join(event["token"]["text"] for event in events) == whole["generated_text"]
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert events[-1]["details"]["finish_reason"] == whole["details"]["finish_reason"]
    assert events[-1]["token"]["special"] == (not parameters.get("stop"))


def test_a_prompt_may_spell_out_its_control_tokens(server: LiveServer) -> None:
    """As chat templates do whose text is sent here."""
    prompt = HTTP.post(f"{server.base_url}/apply-template", json={"messages": ASK}).json()["prompt"]
    body = {"messages": ASK, "max_tokens": 8, "temperature": 0}
    chat = HTTP.post(f"{server.base_url}/v1/chat/completions", json=body).json()
    raw = generate(server, inputs=prompt, max_new_tokens=8, details=True, decoder_input_details=True)
    assert raw["generated_text"] == chat["choices"][0]["message"]["content"]
    assert len(raw["details"]["prefill"]) == chat["usage"]["prompt_tokens"]


def test_a_seed_gives_the_same_text_and_is_told(server: LiveServer) -> None:
    first = generate(server, max_new_tokens=12, temperature=1.2, details=True)
    seed = first["details"]["seed"]
    again = generate(server, max_new_tokens=12, temperature=1.2, details=True, seed=seed, do_sample=False)
    assert again["generated_text"] == first["generated_text"]
    other = generate(server, max_new_tokens=12, temperature=1.2, seed=seed + 1)
    assert other["generated_text"] != first["generated_text"]


def test_the_best_of_several_is_given_first(client: Any) -> None:
    answer = client.text_generation("A list of", max_new_tokens=6, do_sample=True, best_of=4, details=True)
    texts = [answer.details, *answer.details.best_of_sequences]
    totals = [sum(token.logprob for token in one.tokens) for one in texts]
    assert len(totals) == 4
    assert totals == sorted(totals, reverse=True)


def test_truncate_keeps_the_end_of_a_prompt(server: LiveServer) -> None:
    cut = generate(server, truncate=2, max_new_tokens=3, details=True, decoder_input_details=True)
    assert [token["text"] for token in cut["details"]["prefill"]] == [" France", " is"]


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ({"type": "json", "value": CITY}, r'\{\s*"city":\s*"(Paris|Rome)"\s*\}'),
        ({"type": "json", "value": json.dumps(CITY)}, r'\{\s*"city":\s*"(Paris|Rome)"\s*\}'),
        ({"type": "json_schema", "value": {"name": "place", "schema": {"enum": ["Paris", 7]}}}, r'"Paris"|7'),
        ({"type": "regex", "value": "[0-9]{3}-[a-z]{2}"}, "[0-9]{3}-[a-z]{2}"),
    ],
)
def test_a_grammar_holds_the_text(client: Any, grammar: Any, pattern: str) -> None:
    text = client.text_generation("Where? ", grammar=grammar, max_new_tokens=40)
    assert re.fullmatch(pattern, text)
    assert "".join(client.text_generation("Where? ", grammar=grammar, max_new_tokens=40, stream=True)) == text


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"temperature": 0.0}, "parameters.temperature: input should be greater than 0"),
        ({"top_p": 1.5}, "parameters.top_p: "),
        ({"watermark": True}, "parameters.watermark: "),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens: "),
        ({"adapter_id": "none"}, "model 'none' is not served here"),
        ({"best_of": 2}, "best_of: without sampling"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "best_of: with a seed"),
        ({"best_of": 2, "do_sample": True, "stream": True}, "best_of: a stream"),
        ({"best_of": 500, "do_sample": True}, "best_of"),
        ({"decoder_input_details": True, "details": True, "stream": True}, "decoder_input_details: a stream"),
        ({"grammar": {"type": "json", "value": "{"}}, "parameters.grammar.value is not valid JSON"),
        ({"grammar": {"type": "json", "value": 5}}, "parameters.grammar.value: it must be a JSON schema"),
        ({"grammar": {"type": "json_schema", "value": {}}}, "parameters.grammar.value: it must be an object"),
        (
            {"grammar": {"type": "regex", "value": 5}},
            "parameters.grammar.value: a regular expression is a text",
        ),
        ({"grammar": {"type": "bnf", "value": ""}}, "parameters.grammar.type: "),
        ({"stop": [""]}, "stop holds ''"),
    ],
)
def test_what_cannot_be_done_is_a_validation_error(client: Any, parameters: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        client.text_generation("Hi", **parameters)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("route", ["/", "/generate", "/generate_stream"])
@pytest.mark.parametrize(
    "body",
    [{}, {"inputs": ""}, {"inputs": "a" * 60_000}, {"inputs": "a", "surprise": 1}, {"inputs": 5}, []],
)
def test_bad_bodies_have_tgis_shape_and_status(server: LiveServer, route: str, body: Any) -> None:
    answer = HTTP.post(server.base_url + route, json=body)
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert isinstance(answer.json()["error"], str)


def test_an_error_in_mid_stream_is_told(client: Any, server: LiveServer) -> None:
    endless = client.text_generation("One, two,", max_new_tokens=2000, stream=True)
    next(iter(endless))
    server.loop.call_soon_threadsafe(server.service.end_running, "the server is shutting down")
    with pytest.raises(OverloadedError, match="the server is shutting down"):
        list(endless)


def test_a_full_queue_is_an_overloaded_error(tmp_path: Path) -> None:
    with narrow_server(tmp_path) as narrow:
        client = InferenceClient(narrow.base_url)
        with full_queue(narrow), pytest.raises(OverloadedError):
            client.text_generation("Hi", max_new_tokens=1)
        assert client.text_generation("Hi", max_new_tokens=1) is not None


def test_info_tells_the_model_and_its_bounds(server: LiveServer) -> None:
    info = HTTP.get(f"{server.base_url}/info").json()
    assert info["model_id"] == DEFAULT_MODEL
    assert info["max_total_tokens"] == server.service.llm.max_model_len
    assert info["max_input_tokens"] == info["max_total_tokens"] - 1


def test_chat_by_hugging_faces_client(client: Any) -> None:
    answer = client.chat_completion(ASK, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0
    chunks = list(client.chat_completion(ASK, max_tokens=12, temperature=0, stream=True))
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert told == answer.choices[0].message.content
    again = [*ASK, answer.choices[0].message, {"role": "user", "content": "And of Italy?"}]
    assert client.chat_completion(again, max_tokens=4).choices[0].message.content


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}},
        {"type": "json", "value": CITY},
        {"type": "regex", "value": r'\{"city": "(Paris|Rome)"\}'},
    ],
)
def test_a_chat_answer_has_the_form_that_is_asked_for(client: Any, form: Any) -> None:
    answer = client.chat_completion(ASK, max_tokens=40, response_format=form)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")


def test_chat_calls_tools_and_hears_their_results(client: Any) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "visit", "description": "Goes there", "parameters": CITY},
    }
    fields: Any = {"tools": [tool], "tool_choice": "required", "max_tokens": 80}
    answer = client.chat_completion(ASK, **fields)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "visit"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    chunks = [chunk.choices[0].delta for chunk in client.chat_completion(ASK, stream=True, **fields)]
    told = [delta.tool_calls[0] for delta in chunks if delta.tool_calls]
    assert told[0].function.name == "visit"
    arguments = "".join(part.function.arguments for part in told if part.index == 0)
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    dialog = [*ASK, choice.message, result]
    assert client.chat_completion(dialog, tools=[tool], max_tokens=4).choices[0].message.content is not None


def test_chat_streams_end_with_the_line_that_its_client_waits_for(server: LiveServer) -> None:
    body = {"messages": ASK, "max_tokens": 2, "stream": True}
    answer = HTTP.post(f"{server.base_url}/v1/chat/completions", json=body)
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")
