"""The hf profile against the templates published with the models, rendered by transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from corral.errors import RenderError
from corral.text.llama3 import Llama3Renderer
from corral.text.messages import Message, ToolCall
from corral.text.rendered import RenderOptions
from corral.text.tokenizer import Tokenizer
from tests.text.dialogs import CHAT, EACH, SYSTEM, TOOL, Case, Dialog, calls, result, says, user

Make = Callable[[str], Tokenizer]


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
