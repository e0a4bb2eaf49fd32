"""Conversations: what is sent, dropped, exported and imported, and what the chat shows of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.server.page.conversation import (
    Call,
    ChatMessage,
    Conversation,
    Stats,
    as_markdown,
    read_conversations,
    title_of,
)
from corral.server.page.display import (
    chat_messages,
    for_page,
    question_for_page,
    question_from_page,
    stats_in_words,
)


def dialog() -> Conversation:
    """Two questions; the first is answered with the help of a tool."""
    conversation = Conversation()
    conversation.settings.system = "Be brief."
    conversation.ask("What is 2 + 2?")
    call = Call(id="c1", name="calculator", arguments='{"expression": "2 + 2"}')
    conversation.messages.append(ChatMessage(role="assistant", calls=[call]))
    conversation.give_result(call, "4")
    conversation.messages.append(ChatMessage(role="assistant", content="It is 4.", stats=Stats(total_s=1.0)))
    conversation.ask("Thanks")
    conversation.messages.append(ChatMessage(role="assistant", error="The engine failed."))
    return conversation


def test_the_api_gets_messages_calls_and_results_but_no_answer_that_never_began() -> None:
    sent = dialog().for_api()
    assert [message["role"] for message in sent] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert sent[2]["tool_calls"][0]["function"] == {
        "name": "calculator",
        "arguments": '{"expression": "2 + 2"}',
    }
    assert sent[3] == {"role": "tool", "tool_call_id": "c1", "content": "4"}
    assert all(set(message) <= {"role", "content", "tool_calls", "tool_call_id"} for message in sent)


def test_regenerate_undo_and_edit_go_back_to_a_question() -> None:
    conversation = dialog()
    assert conversation.back_to_question()
    assert conversation.messages[-1].content == "Thanks"
    assert conversation.undo() == "Thanks"
    assert conversation.messages[-1].content == "It is 4."
    assert conversation.edit(0, "What is 3 + 3?")
    assert [message.content for message in conversation.messages] == ["What is 3 + 3?"]
    assert conversation.title == "What is 2 + 2?"
    assert not conversation.edit(5, "there is no such message")
    assert conversation.undo() == "What is 3 + 3?"
    assert conversation.undo() == ""
    assert not conversation.back_to_question()


def test_an_edited_message_is_the_one_that_was_shown() -> None:
    shown, origins = chat_messages(dialog())
    questions = [(part["content"], origins[at]) for at, part in enumerate(shown) if part["role"] == "user"]
    assert questions == [("What is 2 + 2?", 0), ("Thanks", 4)]


def test_a_question_closes_calls_that_wait() -> None:
    conversation = Conversation()
    conversation.ask("Weather?")
    calls = [Call(id="a", name="one"), Call(id="b", name="two")]
    conversation.messages.append(ChatMessage(role="assistant", calls=calls))
    conversation.give_result(calls[0], "first")
    assert conversation.open_calls() == [calls[1]]
    conversation.ask("Never mind")
    assert conversation.open_calls() == []
    assert [message.content for message in conversation.messages[2:4]] == ["first", "(no result was given)"]


def test_a_call_is_shown_with_its_own_result_also_where_ids_repeat() -> None:
    conversation = Conversation()
    for result in ("one", "two"):
        conversation.ask("again")
        call = Call(id="call_1", name="f", arguments="{}")
        conversation.messages.append(ChatMessage(role="assistant", calls=[call]))
        conversation.give_result(call, result)
    titles = [part["metadata"]["title"] for part in chat_messages(conversation)[0] if "metadata" in part]
    assert titles == ["🔧 f() → one", "🔧 f() → two"]


def test_a_result_cannot_leave_its_box() -> None:
    conversation = Conversation()
    conversation.ask("go")
    call = Call(id="1", name="f", arguments="{}")
    conversation.messages.append(ChatMessage(role="assistant", calls=[call]))
    conversation.give_result(call, "```\n# out")
    shown = chat_messages(conversation)[0][-1]["content"]
    assert "````\n```\n# out\n````" in shown


def test_exported_json_comes_back_the_same() -> None:
    conversation = dialog()
    assert read_conversations(conversation.model_dump_json()) == [conversation]
    both = json.dumps([conversation.model_dump(), Conversation().model_dump()])
    assert len(read_conversations(both)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", '"messages"'),
        ('{"messages": [{"role": "root"}]}', r"messages\.0\.role"),
        ('{"messages": [], "id": "../../x"}', "field id"),
        ('{"messages": [], "title": 3}', "field title"),
    ],
)
def test_a_file_that_is_no_export_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_conversations(text)


def test_markdown_has_everything_that_was_said() -> None:
    text = as_markdown(dialog())
    for part in (
        "# What is 2 + 2?",
        "Be brief.",
        "## You",
        "**Call of calculator**",
        "It is 4.",
        "> The engine",
    ):
        assert part in text


def test_a_title_is_one_short_line() -> None:
    assert title_of("  Hello\nworld") == "Hello"
    assert len(title_of("word " * 100)) <= 48


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("so $x^2$ grows", r"so \(x^2\) grows"),
        ("it costs $5 and $6", "it costs $5 and $6"),
        ("from $5-$10", "from $5-$10"),
        ("`$x$` and ```\n$y$\n```", "`$x$` and ```\n$y$\n```"),
        ("$$a<b$$ and $c<d$", r"$$a<b$$ and \(c<d\)"),
        ("![a](https://example.org/a.png)", "[a](https://example.org/a.png)"),
        ("![a](//example.org/a.png)", "[a](//example.org/a.png)"),
        ("`![a](https://example.org/a.png)`", "`![a](https://example.org/a.png)`"),
        ("1 < 2", "1 < 2"),
        ("a<br>b<sub>2</sub>", "a<br>b<sub>2</sub>"),
        ("<style>*{}</style>", "<\u2060style>*{}<\u2060/style>"),
        ('<img src="https://example.org/a.png">', '<\u2060img src="https://example.org/a.png">'),
        ("<br onload=x>", "<\u2060br onload=x>"),
        ("```html\n<b>", "```html\n<b>"),
    ],
)
def test_markdown_of_a_model_as_the_page_shows_it(text: str, shown: str) -> None:
    assert for_page(text) == shown


@given(st.text(alphabet="<>&$`!()[]{}\\/ab;#1\n "))
def test_a_question_comes_back_from_the_page_as_it_was_typed(text: str) -> None:
    assert question_from_page(question_for_page(text)) == text


def test_the_line_under_an_answer_has_speed_first_token_and_context() -> None:
    stats = Stats(
        prompt_tokens=1000,
        cached_tokens=900,
        completion_tokens=101,
        first_token_s=0.5,
        total_s=2.5,
        context_length=8192,
        model="m",
        finish_reason="stop",
    )
    line, table = stats_in_words(stats)
    assert line == "50.0 tokens/s · first token 0.50 s · context 1,101 of 8,192"
    assert "1,000 tokens, 900 of them from the cache" in table
    assert stats_in_words(stats, stopped=True)[0].startswith("stopped · ")
    assert stats_in_words(Stats())[0] == "answer"
