"""The items of `/v1/responses`: those that come in, and those that go out."""

from __future__ import annotations

from typing import Any

from corral.engine.events import TokenLogprob, TokenLogprobs
from corral.server.answers import Said
from corral.server.openai.responses_body import ResponseBody
from corral.server.openai.responses_items import dialog
from corral.server.openai.responses_output import OutputItems
from corral.text.messages import as_messages
from corral.text.tokenizer import Tokenizer
from corral.text.tool_calls import CallParser, TextPiece


def test_items_make_the_dialog_that_they_stand_for() -> None:
    body = ResponseBody.model_validate(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": "And kind."},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Weather"},
                        {"type": "input_text", "text": "?"},
                    ],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "id": "msg_1",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
                },
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
                {"type": "function_call_output", "call_id": "c2", "output": "two"},
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "one"}],
                },
                {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
            ],
        }
    )
    messages = as_messages(dialog(body.input, body.instructions))
    assert [message.role for message in messages] == [
        *("system", "system", "user", "assistant", "tool", "tool", "assistant")
    ]
    assert [message.content for message in messages] == [
        "Be brief.",
        "And kind.",
        "Weather?",
        "I look.",
        "two",
        "one",
        "",
    ]
    assert [(call.id, call.name, call.arguments) for call in messages[3].tool_calls] == [
        ("c1", "f", {"a": 1}),
        ("c2", "g", {}),
    ]
    assert [(message.tool_call_id, message.name) for message in messages[4:6]] == [("c2", "g"), ("c1", "f")]
    assert [call.id for call in messages[6].tool_calls] == ["c3"]


def test_text_and_calls_become_items_in_their_order(llama3_tokenizer: Tokenizer) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    parser = CallParser([{"type": "function", "function": function}])
    items, changes = OutputItems(llama3_tokenizer), []
    for character in 'First. <function=f>{"a": 1}</function> Then {"name": "f", "parameters": {"a": 2':
        changes += items.add(Said(0, parser.push(character)))
    changes += [*items.add(Said(0, parser.finish(complete=False))), *items.finish(complete=False)]
    told = [item.get("arguments") or item["content"][0]["text"] for item in items.items]
    assert told == ["First.", '{"a": 1}', "Then", '{"a": 2']
    assert [item["status"] for item in items.items] == ["completed", "completed", "completed", "incomplete"]
    for index, item in enumerate(items.items):
        ours = [(kind, fields) for kind, fields in changes if fields["output_index"] == index]
        assert ours[0][0] == "response.output_item.added"
        assert ours[-1] == ("response.output_item.done", {"output_index": index, "item": item})
        assert "".join(fields["delta"] for kind, fields in ours if kind.endswith(".delta")) == told[index]


def test_logprobs_wait_for_their_text_and_those_of_calls_are_left_out(llama3_tokenizer: Tokenizer) -> None:
    def said(token: int, *pieces: Any) -> Said:
        return Said(0, pieces, 1, (TokenLogprobs(TokenLogprob(token, -1.0, 1)),))

    parser = CallParser([{"type": "function", "function": {"name": "f"}}])
    items = OutputItems(llama3_tokenizer)
    assert items.add(said(1)) == []  # the first half of a character, perhaps
    *_, (kind, fields) = items.add(said(2, TextPiece("x")))
    assert kind == "response.output_text.delta"
    assert len(fields["logprobs"]) == 2
    items.add(said(3, *parser.push('{"name": "f", "parameters": {}}')))
    items.add(said(4, TextPiece("y")))
    items.finish(complete=True)
    counts = [len(item["content"][0]["logprobs"]) for item in items.items if item["type"] == "message"]
    assert counts == [2, 1]


def test_an_answer_without_a_word_is_an_empty_message(llama3_tokenizer: Tokenizer) -> None:
    items = OutputItems(llama3_tokenizer)
    kinds = [kind for kind, _ in items.finish(complete=True)]
    assert kinds[0] == "response.output_item.added"
    assert kinds[-1] == "response.output_item.done"
    assert items.items[0]["content"][0]["text"] == ""
