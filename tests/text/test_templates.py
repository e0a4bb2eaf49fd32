"""The chat templates that Corral writes, run by transformers, against the published ones and the renderer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.text.families import FAMILIES
from corral.text.llama3 import Llama3Renderer
from corral.text.prompt_format import choose_renderer, describe_template
from corral.text.tokenizer import Tokenizer
from tests.text.dialogs import CHAT, EACH, OTHER_TOOL, TOOL, Case, Dialog, calls, result, says, user

Make = Callable[[str], Tokenizer]
Render = Callable[..., str]

BOS = {"bos_token": "<|begin_of_text|>"}

# JSON, short enough to make many of.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from(["f", "get_weather", "brave_search"])
TURNS = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "system"]), TEXTS),
    st.builds(says, TEXTS),
    st.builds(lambda name, values: calls(name, **values), NAMES, st.dictionaries(TEXTS, TEXTS, max_size=2)),
    st.builds(result, JSON.filter(lambda value: value is not None)),
)
OPENINGS = st.lists(st.builds(lambda text: {"role": "system", "content": text}, TEXTS), max_size=1)
DIALOGS = st.builds(
    lambda opening, first, turns: [*opening, user(first), *turns],
    OPENINGS,
    TEXTS,
    st.lists(TURNS, max_size=4),
)
VARIABLES = st.fixed_dictionaries(
    {"tools": st.sampled_from([None, [TOOL], [TOOL, OTHER_TOOL]]), "date_string": st.just("1 May 2025")},
    optional={
        "tools_in_user_message": st.booleans(),
        "builtin_tools": st.lists(st.sampled_from(["brave_search", "code_interpreter"]), unique=True),
        "add_generation_prompt": st.booleans(),
    },
)


@pytest.mark.parametrize(("family", "case"), [pytest.param(f, c, id=f"{f}: {n}") for f, n, c in EACH])
def test_the_prompt_is_that_of_the_published_template_and_of_the_renderer(
    family: str,
    case: Case,
    llama_tokenizer: Make,
    published: Mapping[str, str],
    render_with_transformers: Render,
) -> None:
    variables = {
        **BOS,
        "tools": list(case.tools) or None,
        "add_generation_prompt": case.options.add_generation_prompt,
        **case.variables,
    }
    plain = case.normalised or case.messages
    single = all(len(message.get("tool_calls") or ()) < 2 for message in case.messages)
    ours = render_with_transformers(
        FAMILIES[family].chat_template(), case.messages if single else plain, **variables
    )
    assert ours == render_with_transformers(published[family], plain, **variables)
    rendered = Llama3Renderer(llama_tokenizer(family), family).render(case.messages, case.tools, case.options)
    assert ours == llama_tokenizer(family).decode(rendered.tokens)


@settings(max_examples=300)
@given(st.sampled_from(["llama-3.1", "llama-3.2"]), DIALOGS, VARIABLES)
def test_any_dialog_gives_the_published_prompt(
    published: Mapping[str, str],
    render_with_transformers: Render,
    family: str,
    messages: Dialog,
    variables: dict[str, Any],
) -> None:
    ours, theirs = (
        render_with_transformers(template, messages, **BOS, **variables)
        for template in (FAMILIES[family].chat_template(), published[family])
    )
    assert ours == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_does_not_depend_on_how_a_host_treats_white_space(
    family: str, render_with_transformers: Render
) -> None:
    source = FAMILIES[family].chat_template()
    messages, tools = [*CHAT], None
    if FAMILIES[family].tools:
        messages, tools = [*CHAT, calls("f", n=1), result("1")], [TOOL]
    variables = {"tools": tools, "date_string": "1 May 2025", "add_generation_prompt": True, **BOS}
    bare = jinja2.Environment()  # neither trims nor strips blocks
    bare.filters["tojson"] = lambda value, indent=None: json.dumps(value, indent=indent, ensure_ascii=False)
    expected = render_with_transformers(source, messages, **variables)
    assert bare.from_string(source).render(messages=messages, **variables) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_with_the_template_has_the_familys_own_renderer(
    family: str, llama_tokenizer: Make
) -> None:
    template = FAMILIES[family].chat_template()
    renderer = choose_renderer(llama_tokenizer(family), chat_template=template, family=family)
    assert isinstance(renderer, Llama3Renderer)
    assert renderer.family.name == family
    about = describe_template(template)
    assert about.system_role
    assert about.tools == FAMILIES[family].tools


TWO_CALLS = {**says(""), "tool_calls": calls("f")["tool_calls"] * 2}
IMAGE = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}
REFUSED: dict[str, tuple[str, Dialog, dict[str, Any], str]] = {
    "two calls": ("llama-3.1", [user(), TWO_CALLS], {}, "one tool call only"),
    "two calls in 3.2": ("llama-3.2", [user(), TWO_CALLS], {}, "one tool call only"),
    "no user message for the tools": ("llama-3.1", [says("hi"), user()], {"tools": [TOOL]}, "first user"),
    "a system message alone": ("llama-3.2", CHAT[:1], {"tools": [TOOL]}, "first user message"),
    "an image": ("llama-3.2", [IMAGE], {}, "nothing but text"),
    "an image in Llama 3": ("llama-3", [IMAGE], {}, "nothing but text"),
    "tools in Llama 3": ("llama-3", [user()], {"tools": [TOOL]}, "Llama 3 was not trained for tools"),
    "a call in Llama 3": ("llama-3", [user(), calls("f")], {}, "Llama 3 was not trained for tools"),
    "a result in Llama 3": ("llama-3", [user(), result("1")], {}, "Llama 3 was not trained for tools"),
}


@pytest.mark.parametrize(("family", "messages", "variables", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_format_cannot_express_is_refused(
    family: str, messages: Dialog, variables: dict[str, Any], words: str, render_with_transformers: Render
) -> None:
    with pytest.raises(jinja2.TemplateError, match=words):
        render_with_transformers(FAMILIES[family].chat_template(), messages, **BOS, **variables)


@pytest.mark.parametrize("family", ["llama-3.1", "llama-3.2"])
def test_what_is_null_or_empty_is_as_if_it_were_absent(family: str, render_with_transformers: Render) -> None:
    def render(messages: Dialog, **variables: Any) -> str:
        return render_with_transformers(FAMILIES[family].chat_template(), messages, **BOS, **variables)

    null = [user(), {**says("hi"), "tool_calls": None}, {"role": "tool", "content": None}]
    plain = [user(), says("hi"), result("")]
    assert render(null, tools=None, date_string=None, builtin_tools=None) == render(plain)
    assert render(plain, tools=[], date_string="") == render(plain)
    assert render(plain[:1], custom_tools=[TOOL]) == render(plain[:1], tools=[TOOL])
