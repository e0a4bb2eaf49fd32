"""The hf profile against the templates published with the models, rendered by transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from corral.errors import RenderError
from corral.text.llama3 import Llama3Renderer
from corral.text.messages import Message, ToolCall
from corral.text.rendered import RenderOptions
from corral.text.tokenizer import Tokenizer

Dialog = list[dict[str, Any]]
Make = Callable[[str], Tokenizer]

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo <b>& more</b> in a 'city'",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}},
            "required": ["city"],
        },
    },
}
OTHER_TOOL = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}}


def user(text: str = "What is the weather?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calls(name: str, call_id: str = "c1", /, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def result(content: Any, call_id: str = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id}


SYSTEM = {"role": "system", "content": "  You are terse.\n"}
CHAT = [SYSTEM, user(" hi\n"), says("\n Hello! \n"), user("And\n\nnow?\t")]
NESTED = {"a": {"b": [1, 2.5, None, True]}, "quote": 'say "hi"', "text": "für 東京 <&>"}


@dataclass(frozen=True)
class Case:
    """A dialog, and what the template is called with. `normalised` is the dialog in the template's terms."""

    messages: Dialog
    tools: tuple[dict[str, Any], ...] = ()
    options: RenderOptions = RenderOptions()
    variables: Mapping[str, Any] = field(default_factory=dict)
    normalised: Dialog | None = None


def with_builtin(*names: str) -> tuple[RenderOptions, dict[str, Any]]:
    return RenderOptions(builtin_tools=names), {"builtin_tools": list(names)}


PLAIN = {
    "user only": Case([user()]),
    "all roles, texts to trim": Case(CHAT),
    "no header at the end": Case(CHAT, options=RenderOptions(add_generation_prompt=False)),
    "ends with the assistant": Case([user(), says("Fine.")]),
    "two assistant messages in a row": Case([user(), says("One."), says("Two."), user("3?")]),
    "system in the middle": Case([user(), says("ok"), SYSTEM, user("go on")]),
    "system only": Case([SYSTEM]),
    "empty texts": Case([{"role": "system", "content": ""}, user(""), says(""), user("\n")]),
    "white space of many kinds": Case([user("\u00a0\u2003 x\x1f\x85 "), says("\x0b\x0cy\u3000")]),
    "many scripts": Case([user("नमस्ते 👩🏽‍💻 — مرحبا"), says("ǅ ﬁ \u200b end\u200b"), user("x" * 300)]),
    "null content and parts": Case(
        [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None},
            user("c"),
        ],
        normalised=[user("ab"), says(""), user("c")],
    ),
}

TOOLS = {
    "dates given": Case(
        CHAT, options=RenderOptions(date="1 January 2025"), variables={"date_string": "1 January 2025"}
    ),
    "tool in the user message": Case(CHAT, (TOOL,)),
    "two tools": Case([user()], (TOOL, OTHER_TOOL)),
    "tools in the system message": Case(
        CHAT,
        (TOOL, OTHER_TOOL),
        RenderOptions(tools_in_user_message=False),
        {"tools_in_user_message": False},
    ),
    "tools in the system message, assistant first": Case(
        [says("Hello"), user()],
        (TOOL,),
        RenderOptions(tools_in_user_message=False),
        {"tools_in_user_message": False},
    ),
    "call and text result": Case([user(), calls("get_weather", city="Zürich"), result("25 C")], (TOOL,)),
    "call without tools": Case([user(), calls("f", x=1), result('{"t": 25}'), says("25"), user("ok")]),
    "nested arguments": Case([user(), calls("f", **NESTED), result(NESTED)], (TOOL,)),
    "no arguments": Case([user(), calls("now"), result(["a", 1])], (OTHER_TOOL,)),
    "number as result": Case([user(), calls("now"), result(25.5)], (OTHER_TOOL,)),
    "boolean as result": Case([user(), calls("now"), result(True)], (OTHER_TOOL,)),
    "result in the role ipython": Case(
        [user(), calls("now"), {"role": "ipython", "content": "noon"}],
        normalised=[user(), calls("now"), {"role": "tool", "content": "noon"}],
    ),
    "arguments as text": Case(
        [user(), {**says(""), "tool_calls": [{"function": {"name": "f", "arguments": '{"n": 1}'}}]}],
        normalised=[user(), calls("f", n=1)],
    ),
    "null content beside a call": Case(
        [user(), {**calls("f", n=1), "content": None}], normalised=[user(), calls("f", n=1)]
    ),
    "text beside a call is dropped": Case(
        [user(), {**calls("f", n=1), "content": "I will call f."}, result("1")]
    ),
    "empty list of calls": Case(
        [user(), {**says("hi"), "tool_calls": []}, user("x")], normalised=[user(), says("hi"), user("x")]
    ),
    "several calls, paired by id": Case(
        [
            user(),
            {
                **says(""),
                "tool_calls": calls("f", "a", n=1)["tool_calls"] + calls("g", "b", n=2)["tool_calls"],
            },
            result("two", "b"),
            result("one", "a"),
            says("done"),
        ],
        (TOOL,),
        normalised=[
            user(),
            calls("f", "a", n=1),
            result("one", "a"),
            calls("g", "b", n=2),
            result("two", "b"),
            says("done"),
        ],
    ),
    "several calls, paired by order": Case(
        [
            user(),
            {
                **says(""),
                "tool_calls": calls("f", "a", n=1)["tool_calls"] + calls("g", "b", n=2)["tool_calls"],
            },
            {"role": "tool", "content": "one"},
            {"role": "tool", "content": "two"},
        ],
        normalised=[
            user(),
            calls("f", "a", n=1),
            {"role": "tool", "content": "one"},
            calls("g", "b", n=2),
            {"role": "tool", "content": "two"},
        ],
    ),
}

SEARCH = [user(), calls("brave_search", query="gold price"), result("2000"), says("$2000"), user("thanks")]
BUILTIN = {
    "search enabled": Case(SEARCH, (), *with_builtin("brave_search", "wolfram_alpha")),
    "code interpreter alone": Case(
        [user(), calls("code_interpreter", code="print(1)"), result("1")],
        (),
        *with_builtin("code_interpreter"),
    ),
    "none named": Case([user()], (), *with_builtin()),
    "built-in and custom": Case(
        [user(), calls("get_weather", city="Zürich"), result("1"), calls("wolfram_alpha", query='say "hi"')],
        (TOOL,),
        *with_builtin("wolfram_alpha", "code_interpreter"),
    ),
    "several arguments": Case(
        [user(), calls("wolfram_alpha", query="pi", form="exact")], (), *with_builtin("wolfram_alpha")
    ),
    "search in history, not enabled": Case(SEARCH),
}

EACH = (
    [
        (family, name, case)
        for family in ("llama-3", "llama-3.1", "llama-3.2", "llama-3.3")
        for name, case in PLAIN.items()
    ]
    + [
        (family, name, case)
        for family in ("llama-3.1", "llama-3.2", "llama-3.3")
        for name, case in TOOLS.items()
    ]
    + [(family, name, case) for family in ("llama-3.1", "llama-3.3") for name, case in BUILTIN.items()]
)


@pytest.mark.parametrize(("family", "case"), [pytest.param(f, c, id=f"{f}: {n}") for f, n, c in EACH])
def test_the_tokens_are_those_of_the_published_template(
    family: str,
    case: Case,
    llama_tokenizer: Make,
    published: Mapping[str, str],
    render_with_transformers: Callable[..., str],
    meta_tokenizer: MetaTokenizer,
) -> None:
    tokenizer = llama_tokenizer(family)
    rendered = Llama3Renderer(tokenizer, family).render(case.messages, case.tools, case.options)
    # The template takes a variable that is None as given, so only what is meant is passed.
    variables = {"tools": list(case.tools) or None, **case.variables}
    text = render_with_transformers(
        published[family],
        case.normalised or case.messages,
        bos_token="<|begin_of_text|>",
        add_generation_prompt=case.options.add_generation_prompt,
        **variables,
    )
    assert tokenizer.decode(rendered.tokens) == text
    assert list(rendered.tokens) == tokenizer.encode_prompt_text(text)
    assert list(rendered.tokens) == meta_tokenizer.encode(text, bos=False, eos=False, allowed_special="all")


def test_the_begin_of_text_token_comes_once(llama_tokenizer: Make) -> None:
    for family in ("llama-3", "llama-3.1"):
        tokens = Llama3Renderer(llama_tokenizer(family), family).render(CHAT).tokens
        assert tokens[0] == 128000
        assert tokens.count(128000) == 1


def test_generation_stops_at_every_token_that_ends_a_message(llama_tokenizer: Make) -> None:
    stops = {f: Llama3Renderer(llama_tokenizer(f), f).stop_ids for f in ("llama-3", "llama-3.1", "llama-3.3")}
    assert stops["llama-3"] == {128001, 128009}
    assert stops["llama-3.1"] == stops["llama-3.3"] == {128001, 128008, 128009}
    assert 5 in Llama3Renderer(llama_tokenizer("llama-3"), "llama-3", [5]).stop_ids


def test_the_mask_covers_texts_calls_and_end_tokens_of_the_assistant(llama_tokenizer: Make) -> None:
    tokenizer = llama_tokenizer("llama-3.1")
    messages = [
        SYSTEM,
        user(),
        calls("brave_search", query="x"),
        result("r"),
        says("\n\n Done. \n"),
        user("ok"),
    ]
    options = RenderOptions(builtin_tools=("brave_search",))
    rendered = Llama3Renderer(tokenizer).render(messages, options=options)
    assert rendered.mask is not None
    assert len(rendered.mask) == len(rendered.tokens)
    produced = [token for token, own in zip(rendered.tokens, rendered.mask, strict=True) if own]
    call = '<|python_tag|>brave_search.call(query="x")<|eom_id|>'
    assert tokenizer.decode(produced) == call + "Done.<|eot_id|>"


def test_a_final_message_can_be_continued(llama_tokenizer: Make) -> None:
    tokenizer = llama_tokenizer("llama-3")
    options = RenderOptions(continue_final_message=True)
    rendered = Llama3Renderer(tokenizer, "llama-3").render([user("Count."), says("1, 2, ")], options=options)
    assert tokenizer.decode(rendered.tokens).endswith("assistant<|end_header_id|>\n\n1, 2,")
    assert rendered.mask is not None
    assert rendered.mask[-1]


@pytest.mark.parametrize(
    ("family", "messages", "tools", "options", "words"),
    [
        ("llama-3", [user()], [TOOL], {}, "Llama 3 was not trained for tools; use Llama 3.1 or later"),
        ("llama-3", [user()], [], {"builtin_tools": ()}, "Llama 3 was not trained for tools"),
        ("llama-3", [user(), calls("f")], [], {}, "Llama 3 was not trained for tools"),
        ("llama-3", [user(), result("1")], [], {}, "Llama 3 was not trained for tools"),
        ("llama-3", [user()], [], {"date": "1 May 2025"}, "date: Llama 3 prompts"),
        (
            "llama-3.2",
            [user()],
            [],
            {"builtin_tools": ("brave_search",)},
            "template of Llama 3.2 has no place",
        ),
        ("llama-3.1", [user()], [], {"builtin_tools": ("google",)}, "'google' is not one of brave_search"),
        ("llama-3.1", [user()], [], {"tool_format": "json"}, "tool_format: the published template"),
        ("llama-3.1", [user()], [], {"template_kwargs": {"a": 1}}, "template_kwargs"),
        ("llama-3.1", [SYSTEM], [TOOL], {}, "describes tools in the first user message"),
        ("llama-3.1", [says("hi"), user()], [TOOL], {}, "describes tools in the first user message"),
        ("llama-3.1", [], [], {}, "messages is empty"),
        ("llama-3.1", [user()], [], {"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_the_template_cannot_express_is_refused(
    family: str,
    messages: Dialog,
    tools: list[dict[str, Any]],
    options: dict[str, Any],
    words: str,
    llama_tokenizer: Make,
) -> None:
    with pytest.raises(RenderError, match=words):
        Llama3Renderer(llama_tokenizer(family), family).render(messages, tools, RenderOptions(**options))


def test_arguments_that_are_not_text_are_refused_in_a_built_in_call(llama_tokenizer: Make) -> None:
    call = Message("assistant", tool_calls=(ToolCall("brave_search", {"query": 3}),))
    options = RenderOptions(builtin_tools=("brave_search",))
    with pytest.raises(RenderError, match="query is int, but a built-in tool takes only text"):
        Llama3Renderer(llama_tokenizer("llama-3.1")).render([Message("user", "x"), call], options=options)
