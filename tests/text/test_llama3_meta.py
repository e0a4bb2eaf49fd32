"""The meta profile against Meta's prompt-format documents and Meta's own encoder.

The package llama-models carries the documents of Llama 3.1 and 3.2. That of 3.3 is not in it; its examples
are those of 3.1 and of 3.2 ("Zero shot function calling"), but for one prompt, which is checked by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_models.datatypes import RawMessage, StopReason, ToolCall
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from corral.errors import RenderError
from corral.text.base import render_text
from corral.text.llama3_meta import Llama3MetaRenderer
from corral.text.rendered import RenderOptions
from corral.text.tokenizer import Tokenizer
from tests.text.meta_documents import (
    BASE_HEADINGS,
    CASES,
    FAMILY,
    HAND_WRITTEN,
    QUESTION,
    SEARCH,
    SONGS_JSON,
    TEXT_3_1,
    TEXT_3_2,
    USER_INFO,
    WEATHER,
    Case,
    Dialog,
    call,
    calls,
    examples,
    result,
    says,
    system,
    user,
)

Make = Callable[[str], Tokenizer]
_MESSAGE = re.compile(
    r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(<\|eot_id\|>|<\|eom_id\|>)", re.DOTALL
)


def encoded_by_meta(tokenizer: MetaTokenizer, prompt: str) -> list[int]:
    """Meta's reference on the messages of a prompt, which ends with the assistant's header."""
    raw = []
    for role, content, end in _MESSAGE.findall(prompt):
        tagged = content.startswith("<|python_tag|>")
        code = [ToolCall(call_id="", tool_name="code_interpreter", arguments={"code": content[14:]})]
        raw.append(
            RawMessage(
                role="tool" if role == "ipython" else role,
                content="" if tagged else content,
                tool_calls=code if tagged else [],
                stop_reason=StopReason.end_of_message if end == "<|eom_id|>" else StopReason.end_of_turn,
            )
        )
    return list(ChatFormat(tokenizer).encode_dialog_prompt(raw).tokens)


def filled(case: Case, prompt: str, response: str) -> Case:
    """A case with the parts that are taken from the document as they are."""
    content = _MESSAGE.findall(prompt)[-1][1]
    own = re.sub(r"<\|\w+\|>", "", response)
    written = json.dumps([case.messages, case.reply])
    for name, text in (("{prompt}", content), ("{response}", own)):
        written = written.replace(json.dumps(name), json.dumps(text))
    messages, reply = json.loads(written)
    return replace(case, messages=messages, reply=reply)


@pytest.mark.parametrize("document", CASES)
def test_every_example_of_the_documents_is_tested(document: str, llama_models_folder: Path) -> None:
    found = examples(llama_models_folder, document)
    assert len(found) == (llama_models_folder / document).read_text().count("##### Input Prompt Format")
    assert set(found) == {*CASES[document], BASE_HEADINGS[document]}


IN_3_3 = [*((TEXT_3_1, heading) for heading in CASES[TEXT_3_1]), (TEXT_3_2, "Zero shot function calling")]
EXAMPLES = [(FAMILY[document], document, heading) for document, cases in CASES.items() for heading in cases]


@pytest.mark.parametrize(
    ("family", "document", "heading"), [*EXAMPLES, *(("llama-3.3", *place) for place in IN_3_3)]
)
def test_the_examples_of_the_documents_are_reproduced(
    family: str,
    document: str,
    heading: str,
    llama_models_folder: Path,
    meta_tokenizer: MetaTokenizer,
    llama_tokenizer: Make,
) -> None:
    prompt, response = examples(llama_models_folder, document)[heading]
    case = filled(CASES[document][heading], prompt, response)
    tokenizer = llama_tokenizer(family)
    renderer = Llama3MetaRenderer(tokenizer, family)

    rendered = renderer.render(case.messages, case.tools, case.options)
    assert tokenizer.decode(rendered.tokens) == prompt
    assert list(rendered.tokens) == encoded_by_meta(meta_tokenizer, prompt)

    options = replace(case.options, add_generation_prompt=False)
    answered = renderer.render([*case.messages, case.reply], case.tools, options)
    assert answered.tokens[: len(rendered.tokens)] == rendered.tokens
    assert tokenizer.decode(answered.tokens[len(rendered.tokens) :]) == response
    assert answered.mask is not None
    assert all(answered.mask[len(rendered.tokens) :])
    assert answered.tokens[-1] in answered.stop_ids


@pytest.mark.parametrize("document", CASES)
def test_the_examples_for_base_models_are_reproduced(
    document: str, llama_models_folder: Path, llama_tokenizer: Make
) -> None:
    prompt, _ = examples(llama_models_folder, document)[BASE_HEADINGS[document]]
    tokenizer = llama_tokenizer(FAMILY[document])
    text = prompt.removeprefix("<|begin_of_text|>")
    for given in (text, prompt):
        rendered = render_text(tokenizer, given)
        assert tokenizer.decode(rendered.tokens) == prompt
        assert rendered.tokens.count(128000) == 1
        assert not any(rendered.mask or ())


def test_tools_in_the_user_message_have_the_wording_of_the_3_2_document(
    llama_models_folder: Path, llama_tokenizer: Make
) -> None:
    prompt, _ = examples(llama_models_folder, TEXT_3_2)[HAND_WRITTEN]
    tokenizer = llama_tokenizer("llama-3.2")
    options = RenderOptions(tools_in_user_message=True)
    rendered = Llama3MetaRenderer(tokenizer, "llama-3.2").render([user(QUESTION)], [USER_INFO], options)
    text = tokenizer.decode(rendered.tokens)
    end_of_tools = "\n]\n\n"
    assert text.split("\n[\n")[0] == prompt.split("\n[\n")[0]
    assert text.split(end_of_tools)[1] == prompt.split(end_of_tools)[1]
    assert json.loads(text[text.index("\n[\n") : text.index(end_of_tools) + 2])[0]["name"] == "get_user_info"


def test_tools_in_the_user_message_have_another_wording_in_3_3(llama_tokenizer: Make) -> None:
    texts = []
    for family in ("llama-3.2", "llama-3.3"):
        tokenizer = llama_tokenizer(family)
        options = RenderOptions(tools_in_user_message=True)
        rendered = Llama3MetaRenderer(tokenizer, family).render([user(QUESTION)], [USER_INFO], options)
        texts.append(tokenizer.decode(rendered.tokens))
    changed = texts[0].replace("function call(s),Put it in", "function call(s), put them in")
    changed = changed.replace(
        "NO other text MUST be included.", "You SHOULD NOT include any other text in the response."
    )
    assert changed == texts[1] != texts[0]


def dialog_text(make: Make, family: str, messages: Dialog, tools: Any = (), **options: Any) -> str:
    tokenizer = make(family)
    rendered = Llama3MetaRenderer(tokenizer, family).render(messages, tools, RenderOptions(**options))
    return tokenizer.decode(rendered.tokens)


def test_content_is_not_trimmed_and_no_system_message_is_made_up(llama_tokenizer: Make) -> None:
    text = dialog_text(llama_tokenizer, "llama-3.1", [user(" hi \n"), says("\nyo ")])
    assert text.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n hi \n<|eot_id|>")
    assert "<|end_header_id|>\n\n\nyo <|eot_id|>" in text


@pytest.mark.parametrize(
    ("options", "instruction", "expected"),
    [
        ({"builtin_tools": ()}, "", "Environment: ipython"),
        ({"builtin_tools": ()}, "Be brief.", "Environment: ipython\n\nBe brief."),
        (
            {"builtin_tools": SEARCH},
            "Be brief.",
            "Environment: ipython\nTools: brave_search, wolfram_alpha\n\nBe brief.",
        ),
        (
            {"date": "1 May 2025"},
            "Be brief.",
            "Cutting Knowledge Date: December 2023\nToday Date: 1 May 2025\n\nBe brief.",
        ),
    ],
)
def test_the_environment_precedes_the_instruction(
    options: dict[str, Any], instruction: str, expected: str, llama_tokenizer: Make
) -> None:
    text = dialog_text(llama_tokenizer, "llama-3.1", [system(instruction), user("x")], **options)
    assert _MESSAGE.findall(text)[0][1] == expected


def test_pythonic_tools_precede_the_instruction(llama_tokenizer: Make) -> None:
    text = dialog_text(llama_tokenizer, "llama-3.2", [system("Be brief."), user("x")], [WEATHER])
    content = _MESSAGE.findall(text)[0][1]
    assert content.startswith("You are an expert in composing functions.")
    assert content.endswith("\n]\n\nBe brief.")


def test_descriptions_with_quotes_stay_valid_json(llama_tokenizer: Make) -> None:
    quoted = {**SONGS_JSON, "description": 'the "best" songs\n\\ü'}
    for tool_format in ("json", "function_tag", "pythonic"):
        text = dialog_text(
            llama_tokenizer, "llama-3.3", [user("x")], [quoted, WEATHER], tool_format=tool_format
        )
        content = _MESSAGE.findall(text)[0][1]
        start = content.index(
            "\n[\n" if tool_format == "pythonic" else '\n{\n    "type' if tool_format == "json" else '\n{"n'
        )
        value, _ = json.JSONDecoder().raw_decode(content, start + 1)
        value = value[0] if isinstance(value, list) else value.get("function", value)
        assert value["description"] == quoted["description"]
        assert content.count("get_weather") >= 1


@pytest.mark.parametrize(
    ("family", "options", "call_made", "expected"),
    [
        (
            "llama-3.1",
            {},
            call("f", q="it's"),
            '{\n    "type": "function",\n    "name": "f",\n    "parameters": {\n'
            '        "q": "it\'s"\n    }\n}<|eot_id|>',
        ),
        (
            "llama-3.1",
            {"tool_format": "function_tag"},
            call("f", a={"b": 1}, c="it's"),
            '<function=f>{"a": {"b": 1}, "c": "it\'s"}</function><|eot_id|>',
        ),
        (
            "llama-3.2",
            {},
            call("m.f", s='a "q"', d={"k": [1, None, True]}, n=-2.5),
            "[m.f(s='a \"q\"', d={'k': [1, None, True]}, n=-2.5)]<|eot_id|>",
        ),
        (
            "llama-3.2",
            {"tool_format": "pythonic_tagged"},
            call("f", s='a "q"\n'),
            '<|python_tag|>[f(s="a \\"q\\"\\n")]<|eot_id|>',
        ),
        (
            "llama-3.1",
            {"builtin_tools": SEARCH},
            call("brave_search", query='say "hi" \\'),
            '<|python_tag|>brave_search.call(query="say \\"hi\\" \\\\")<|eom_id|>',
        ),
        (
            "llama-3.2",
            {"builtin_tools": ()},
            call("code_interpreter", code="print('<|eot_id|>')"),
            "<|python_tag|>print('<|eot_id|>')<|eom_id|>",
        ),
        ("llama-3.2", {}, call("now"), "[now()]<|eot_id|>"),
    ],
)
def test_calls_in_history_are_escaped(
    family: str, options: dict[str, Any], call_made: dict[str, Any], expected: str, llama_tokenizer: Make
) -> None:
    text = dialog_text(
        llama_tokenizer, family, [user("x"), calls(call_made)], add_generation_prompt=False, **options
    )
    assert text.endswith(f"assistant<|end_header_id|>\n\n{expected}")


def test_several_calls_become_pairs_where_a_message_holds_one(llama_tokenizer: Make) -> None:
    made = calls({"id": "a", **call("f")}, {"id": "b", **call("g")})
    dialog = [user("x"), made, result("for g", "b"), result({"for": "f"}, "a")]
    text = dialog_text(llama_tokenizer, "llama-3.1", dialog, tool_format="function_tag")
    contents = [content for _, content, _ in _MESSAGE.findall(text)]
    assert contents == [
        "x",
        "<function=f>{}</function>",
        '{"for": "f"}',
        "<function=g>{}</function>",
        "for g",
    ]


def test_several_calls_stay_together_where_a_message_holds_many(llama_tokenizer: Make) -> None:
    dialog = [user("x"), calls(call("f", a=1), call("g")), result("1"), result("2")]
    text = dialog_text(llama_tokenizer, "llama-3.2", dialog)
    assert [content for _, content, _ in _MESSAGE.findall(text)] == ["x", "[f(a=1), g()]", "1", "2"]


def test_a_declared_tool_is_not_taken_for_a_built_in_one(llama_tokenizer: Make) -> None:
    own = {"name": "brave_search", "parameters": {"properties": {"q": {"type": "string"}}}}
    dialog = [user("x"), calls(call("brave_search", q=3))]
    text = dialog_text(llama_tokenizer, "llama-3.1", dialog, [own], builtin_tools=("brave_search",))
    assert '<|python_tag|>{\n    "type": "function",\n    "name": "brave_search"' in text


@pytest.mark.parametrize(
    ("family", "messages", "tools", "options", "words"),
    [
        ("llama-3", [user("x")], [WEATHER], {}, "not trained for tools; use Llama 3.1 or later"),
        ("llama-3", [user("x"), result("1")], [], {}, "not trained for tools"),
        ("llama-3", [user("x")], [], {"tool_format": "json"}, "Llama 3 has no format 'json'"),
        (
            "llama-3.1",
            [user("x")],
            [WEATHER],
            {"tool_format": "pythonic"},
            "choose one of json, function_tag",
        ),
        (
            "llama-3.2",
            [user("x")],
            [],
            {"builtin_tools": ("wolfram_alpha",)},
            "not trained for wolfram_alpha",
        ),
        (
            "llama-3.1",
            [user("x")],
            [WEATHER],
            {"tools_in_user_message": False},
            "needs them in a user message",
        ),
        ("llama-3.1", [system("x")], [WEATHER], {}, "before the first user message, but messages has none"),
        ("llama-3.2", [system("x")], [WEATHER], {"tools_in_user_message": True}, "messages has none"),
        ("llama-3.1", [], [], {}, "messages is empty"),
        (
            "llama-3.1",
            [calls(call("brave_search", query=1))],
            [],
            {"builtin_tools": SEARCH},
            "takes only text",
        ),
        (
            "llama-3.1",
            [calls(call("code_interpreter", x="1"))],
            [],
            {"builtin_tools": ()},
            "exactly the arguments",
        ),
        ("llama-3.2", [calls(call("f", x=float("nan")))], [], {}, "no form as a literal"),
    ],
)
def test_what_the_documents_have_no_place_for_is_refused(
    family: str, messages: Dialog, tools: Any, options: dict[str, Any], words: str, llama_tokenizer: Make
) -> None:
    with pytest.raises(RenderError, match=words):
        dialog_text(llama_tokenizer, family, messages, tools, **options)
