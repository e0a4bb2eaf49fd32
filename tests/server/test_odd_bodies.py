"""Bodies that no honest client sends: each is refused in words, and at its first fault."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from corral.server.openai.chat_body import ChatBody
from corral.server.tokenize import DetokenizeBody
from tests.server.live_server import LiveServer

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def refused(server: LiveServer, path: str, body: Any) -> str:
    """What the server says against a body; a text is sent as it is."""
    sent = {"content": body, "headers": {"content-type": "application/json"}}
    answer = httpx.post(f"{server.base_url}{path}", **(sent if isinstance(body, str) else {"json": body}))
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("NaN", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e400", "1e400 is too large for a number"),
        ("1" * 5000, "a number in it has too many digits"),
    ],
    ids=["nan", "infinity", "1e400", "digits"],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/responses",
            '{"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"maximum": 1?}}]}',
        ),
        ("/v1/messages", '{"model": "small", "max_tokens": 1?, "messages": []}'),
        ("/invocations", '{"inputs": "x", "parameters": {"temperature": 1?}}'),
        ("/tokenize", '{"messages": [], "chat_template_kwargs": {"a": 1?}}'),
    ],
    ids=["responses", "messages", "invocations", "tokenize"],
)
def test_a_number_that_json_cannot_hold_is_refused(
    small_server: LiveServer, path: str, body: str, number: str, said: str
) -> None:
    assert refused(small_server, path, body.replace("1?", number)).endswith(f"is not valid JSON: {said}")


@pytest.mark.parametrize("schema", ["", "\x00", "1", '"text"', "[1]", '{"const": ' + "9" * 6000 + "}"])
def test_a_schema_that_is_none_is_refused_beside_tools(small_server: LiveServer, schema: str) -> None:
    said = refused(small_server, "/v1/chat/completions", {**CHAT, "tools": [TOOL], "guided_json": schema})
    assert said.startswith("structured_outputs.json is ")
    assert "sys." not in said


def test_a_schema_that_nothing_fits_is_refused_beside_tools(small_server: LiveServer) -> None:
    body = {**CHAT, "tools": [TOOL], "guided_json": False}
    said = refused(small_server, "/v1/chat/completions", body)
    assert said == "structured_outputs.json cannot match anything: the schema is false"


@pytest.mark.parametrize("kind", [[], {}, [[1]], {"a": 1}, 7])
def test_a_block_whose_type_is_no_text_is_refused(small_server: LiveServer, kind: Any) -> None:
    content = [{"type": kind, "text": "x"}]
    body = {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    assert refused(small_server, "/v1/messages", body).startswith("messages[0].content[0].type: ")


@pytest.mark.parametrize("penalty", [1e-320, 1e-9, 1e30, 0])
def test_a_penalty_that_no_logit_bears_is_refused(small_server: LiveServer, penalty: float) -> None:
    said = refused(small_server, "/v1/completions", {"prompt": "x", "repetition_penalty": penalty})
    assert said.startswith("repetition_penalty: ")
    said = refused(small_server, "/generate", {"inputs": "x", "parameters": {"repetition_penalty": penalty}})
    assert said.startswith("parameters.repetition_penalty: ")


def test_arguments_nested_without_end_are_refused(small_server: LiveServer) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    messages = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    said = refused(small_server, "/v1/chat/completions", {"messages": messages})
    assert said == "messages[1]: tool_calls[0].arguments is not valid JSON: it is nested too deeply"


def test_a_refusal_does_not_repeat_a_long_body(small_server: LiveServer) -> None:
    named = {"type": "function", "function": {"name": "x" * 60_000}}
    said = refused(small_server, "/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": named})
    assert said.startswith("tool_choice: 'xxx")
    assert len(said) < 1100
    assert len(refused(small_server, "/v1/chat/completions", {**CHAT, "y" * 60_000: 1})) < 1100


@pytest.mark.parametrize("name", ["top-p", "Text", "a b", ""])
def test_an_unknown_field_is_named_as_it_is_written(small_server: LiveServer, name: str) -> None:
    said = refused(small_server, "/v1/chat/completions", {**CHAT, name: 1})
    assert said == f"{name or repr(name)} is no field that this server knows; remove it"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/generate", "/tokenize"])
def test_a_body_that_is_not_sent_as_json_is_told_so(
    small_server: LiveServer, path: str, kind: str | None
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = httpx.post(f"{small_server.base_url}{path}", content='{"prompt": "x"}', headers=headers)
    assert answer.status_code in (400, 422)
    assert "send content-type: application/json" in answer.text


def test_a_token_outside_the_vocabulary_names_its_field(small_server: LiveServer) -> None:
    assert refused(small_server, "/detokenize", {"tokens": [10**9]}).startswith(
        "tokens: token id 1000000000 "
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 1000},
        {"stop": [1] * 1000},
        {"logit_bias": dict.fromkeys(map(str, range(1000)), "x")},
        {f"k{i}": 1 for i in range(1000)},
    ],
    ids=["messages", "stop", "logit_bias", "unknown"],
)
def test_the_first_fault_ends_the_reading(fields: dict[str, Any]) -> None:
    """So that a body with 100,000 of them does not hold up the event loop."""
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({**CHAT, **fields})
    assert caught.value.error_count() < 100
    with pytest.raises(ValidationError) as caught:
        DetokenizeBody.model_validate({"tokens": ["x"] * 1000})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/apply-template"])
def test_a_dialog_with_more_messages_than_the_context_has_tokens_is_not_even_rendered(
    small_server: LiveServer, path: str
) -> None:
    said = refused(small_server, path, {"messages": MESSAGES * 5000})
    assert said.startswith("messages: 5,000 cannot fit into the context of")
