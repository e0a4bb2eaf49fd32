"""Other checkpoints' chat templates against transformers' own rendering and tokenizing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from corral.errors import RenderError
from corral.text.rendered import RenderOptions
from corral.text.template import TemplateRenderer
from corral.text.tokenizer import Tokenizer

Dialog = list[dict[str, Any]]
Read = Callable[[Path], PreTrainedTokenizerFast]

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set start = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set loop_messages = messages[1:] %}"
    "{% else %}{% set start = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (start if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TINYLLAMA = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' ~ (strftime_now('%Y') | length) ~ ' digits\\n' }}
    {%- for tool in tools %}
        {%- if loop.index > 2 %}{% break %}{% endif %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and tools %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}
        {{- message.content if message.content is string else message.content | tojson }}
        {%- for call in message.tool_calls or [] %}
            {%- set f = call.function %}
            {{- '\\n<tool_call>' ~ ({'name': f.name, 'arguments': f.arguments} | tojson) }}
        {%- endfor %}
        {{- '<|im_end|>' }}
    {%- endgeneration %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo <b>& more</b> in a 'city'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(text: str = "Who <are> you?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str = "  I am 東京 & more. ") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be > brief"}
CALL = {
    **says(""),
    "tool_calls": [
        {
            "id": "c",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "<Zürich>"}},
        }
    ],
}
RESULT = {"role": "tool", "content": "25 > 20", "tool_call_id": "c", "name": "get_weather"}

CHATS: list[Dialog] = [
    [user()],
    [user(), says(), user("> quoted\n| <")],
    [SYSTEM, user(), says(), user(" and\n\nnow? "), says("ok")],
]
TOOL_CHATS: list[Dialog] = [
    [user()],
    [user(), CALL, RESULT],
    [SYSTEM, user(), CALL, RESULT, says(), user("<|")],
]


def expected(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: Dialog, tools: Any, generation: bool
) -> list[int] | None:
    """What transformers gives; None where the template refuses the dialog or fails."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=generation
        )
    except (jinja2.TemplateError, TypeError):
        return None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def given(renderer: TemplateRenderer, messages: Dialog, tools: Any, generation: bool) -> list[int] | None:
    options = RenderOptions(add_generation_prompt=generation)
    try:
        return list(renderer.render(messages, tools or (), options).tokens)
    except RenderError:
        return None


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("template", ["chatml", LLAMA_2, TINYLLAMA, TOOLS])
def test_the_tokens_are_those_of_transformers(
    template: str,
    generation: bool,
    chatml: str,
    chatml_folder: Path,
    llama2_folder: Path,
    as_transformers: Read,
) -> None:
    template = chatml if template == "chatml" else template
    for folder in (chatml_folder, llama2_folder):
        renderer, oracle = TemplateRenderer(Tokenizer.from_hf(folder), template), as_transformers(folder)
        for messages in CHATS:
            tokens = given(renderer, messages, None, generation)
            assert tokens is not None
            assert tokens == expected(oracle, template, messages, None, generation)


def test_the_templates_of_many_families_give_the_tokens_of_transformers(
    template_folder: Path, chatml_folder: Path, as_transformers: Read
) -> None:
    tokenizer, oracle = Tokenizer.from_hf(chatml_folder), as_transformers(chatml_folder)
    compared, with_tools = 0, 0
    for file in sorted(template_folder.glob("*.jinja")):
        template = file.read_text()
        renderer = TemplateRenderer(tokenizer, template, tools_as_text=False)
        for messages in CHATS:
            wanted = expected(oracle, template, messages, None, True)
            assert given(renderer, messages, None, True) == wanted, (file.name, messages)
            compared += wanted is not None
        for messages in TOOL_CHATS:
            tokens = given(renderer, messages, [TOOL], True)
            # Ours refuses more: a template that would leave out the tools or the calls.
            if tokens is not None:
                assert tokens == expected(oracle, template, messages, [TOOL], True), (file.name, messages)
                with_tools += 1
    assert compared > 150
    assert with_tools > 80


def test_tools_results_and_loop_controls_give_the_tokens_of_transformers(
    chatml_folder: Path, as_transformers: Read
) -> None:
    tokenizer, oracle = Tokenizer.from_hf(chatml_folder), as_transformers(chatml_folder)
    renderer = TemplateRenderer(tokenizer, TOOLS)
    for messages in [*TOOL_CHATS, [user(), CALL, {**RESULT, "content": {"t": [1, "é"]}}]]:
        for tools in ([TOOL], [TOOL] * 4):
            tokens = given(renderer, messages, tools, True)
            assert tokens == expected(oracle, TOOLS, messages, tools, True)


def test_generation_blocks_give_the_mask_of_transformers(
    template_folder: Path, chatml_folder: Path, as_transformers: Read
) -> None:
    tokenizer, oracle = Tokenizer.from_hf(chatml_folder), as_transformers(chatml_folder)
    templates = [file.read_text() for file in sorted(template_folder.glob("*_training.jinja"))]
    messages = [user("a"), says("bcd"), user("e"), says("fgh ijk")]
    compared = 0
    for template in templates:
        if expected(oracle, template, messages, None, False) is None:
            continue
        output = oracle.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        rendered = TemplateRenderer(tokenizer, template).render(
            messages, options=RenderOptions(add_generation_prompt=False)
        )
        assert list(rendered.tokens) == output["input_ids"]
        # Where a block does not begin between two tokens, transformers counts the token that it begins in.
        theirs = [bool(own) for own in output["assistant_masks"]]
        differing = sum(a != b for a, b in zip(rendered.mask or (), theirs, strict=True))
        assert differing <= 2
        compared += any(theirs)
    assert compared > 10


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("chatml", "one<|im_end|>three<|im_end|>"),
        (LLAMA_2, " one <|im_end|> three <|im_end|>"),
        (TINYLLAMA, "one<|im_end|>three<|im_end|>"),
    ],
)
def test_without_generation_blocks_the_mask_is_found_on_demand(
    template: str, expected: str, chatml: str, chatml_folder: Path
) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    renderer = TemplateRenderer(tokenizer, chatml if template == "chatml" else template)
    messages = [user(), says("one"), user("two"), says("three")]
    options = RenderOptions(add_generation_prompt=False)
    assert renderer.render(messages, options=options).mask is None
    rendered = renderer.render(messages, options=replace(options, assistant_mask=True))
    assert rendered.mask is not None
    produced = [token for token, own in zip(rendered.tokens, rendered.mask, strict=True) if own]
    assert tokenizer.decode(produced) == expected
    assert not any(renderer.render([user()]).mask or (True,))


def test_the_mask_is_right_where_the_vocabulary_adds_a_space(llama2_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(llama2_folder)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}"
        "{% else %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    rendered = TemplateRenderer(tokenizer, template).render([user("#7"), says("@8"), user("^"), says("9")])
    spelled = [
        (tokenizer.decode([t]), own) for t, own in zip(rendered.tokens, rendered.mask or (), strict=True)
    ]
    assert "".join(text for text, own in spelled if own) == "@89"
    assert "".join(text for text, own in spelled if not own) == "#7^"


def test_a_mask_that_the_template_does_not_tell_is_refused_never_empty(chatml_folder: Path) -> None:
    renumbering = "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    renderer = TemplateRenderer(Tokenizer.from_hf(chatml_folder), renumbering)
    with pytest.raises(RenderError, match=r"messages\[1\].*generation"):
        renderer.render([user(), says(), user()], options=RenderOptions(assistant_mask=True))
    assert renderer.render([user(), says(), user()]).mask is None
    elsewhere = "{% if x %}{% generation %}{% endgeneration %}{% endif %}{{ messages[0].content }}"
    assert TemplateRenderer(Tokenizer.from_hf(chatml_folder), elsewhere).render([user(), says()]).mask is None


def test_a_final_message_is_continued_as_transformers_does(
    chatml: str, chatml_folder: Path, as_transformers: Read
) -> None:
    tokenizer, oracle = Tokenizer.from_hf(chatml_folder), as_transformers(chatml_folder)
    options = RenderOptions(continue_final_message=True, assistant_mask=True)
    for template in (chatml, LLAMA_2, TOOLS):
        for text in ("Once upon", "Once upon ", ""):
            messages = [user(), says(text)]
            rendered = TemplateRenderer(tokenizer, template).render(messages, options=options)
            wanted = oracle.apply_chat_template(
                messages, chat_template=template, tokenize=False, continue_final_message=True
            )
            assert tokenizer.decode(rendered.tokens) == wanted
            assert rendered.mask is not None
            assert rendered.mask[-1] or not text


def test_a_template_for_tools_is_used_where_there_are_tools(chatml: str, chatml_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    renderer = TemplateRenderer(tokenizer, chatml, tool_template=TOOLS)
    assert "get_weather" in tokenizer.decode(renderer.render([user()], [TOOL]).tokens)
    assert "SmolLM" in tokenizer.decode(renderer.render([user()]).tokens)


def test_options_reach_templates_that_read_them(published: dict[str, str], chatml_folder: Path) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    renderer = TemplateRenderer(tokenizer, published["llama-3.1"])
    options = RenderOptions(builtin_tools=("brave_search",), date="1 May 2025", tools_in_user_message=False)
    text = tokenizer.decode(renderer.render([user()], [TOOL], options).tokens)
    assert "Tools: brave_search\n\nCutting" in text
    assert "Today Date: 1 May 2025" in text
    assert "You have access to the following functions." in text
    kwargs = RenderOptions(template_kwargs={"date_string": "now"})
    assert "Today Date: now" in tokenizer.decode(renderer.render([user()], options=kwargs).tokens)


@pytest.mark.parametrize(
    ("template", "messages", "tools", "options", "words"),
    [
        ("{% if", [user()], [], {}, "the chat template cannot be compiled, line 1"),
        (
            "{{ messages[0].x.y }}",
            [user()],
            [],
            {},
            "the chat template fails on this dialog: .* has no attribute",
        ),
        ("{{ raise_exception('no!') }}", [user()], [], {}, "the chat template refuses this dialog: no!"),
        ("{{ messages[0].content + 1 }}", [user()], [], {}, "the chat template fails on this dialog"),
        ("{{ ''.__class__.__mro__ }}", [user()], [], {}, "the chat template fails on this dialog: .*unsafe"),
        ("{{ messages.append(1) }}", [user()], [], {}, "the chat template fails on this dialog: .*unsafe"),
        ("chatml", [user()], [TOOL], {}, "tools: .* has no place for tools"),
        ("chatml", [user(), CALL], [], {}, "tool_calls: .* has no place for tool calls"),
        ("chatml", [user()], [], {"date": "x"}, "date: .* no place"),
        ("chatml", [user()], [], {"builtin_tools": ()}, "builtin_tools: .* no place"),
        ("chatml", [user()], [], {"tool_format": "json"}, "tool_format: .* a format of its own"),
        ("chatml", [user()], [], {"template_kwargs": {"thinking": 1}}, "does not read 'thinking'"),
        ("chatml", [user()], [], {"template_kwargs": {"messages": 1}}, "messages is set by other means"),
        ("{{ x }}", [user()], [], {"template_kwargs": {"x": [object()]}}, r"x\[0\] must be plain JSON data"),
        ("chatml", [], [], {}, "messages is empty"),
        (
            "chatml",
            [user()],
            [],
            {"continue_final_message": True},
            "the last message must be the assistant's",
        ),
        ("x", [says()], [], {"continue_final_message": True}, "leaves the last message's text out"),
    ],
)
def test_what_a_template_cannot_express_is_refused(
    template: str,
    messages: Dialog,
    tools: list[Any],
    options: dict[str, Any],
    words: str,
    chatml: str,
    chatml_folder: Path,
) -> None:
    tokenizer = Tokenizer.from_hf(chatml_folder)
    template = chatml if template == "chatml" else template
    with pytest.raises(RenderError, match=words):
        TemplateRenderer(tokenizer, template, tools_as_text=False).render(
            messages, tools, RenderOptions(**options)
        )


def test_stop_ids_are_those_given_and_the_end_of_text(chatml: str, chatml_folder: Path) -> None:
    renderer = TemplateRenderer(Tokenizer.from_hf(chatml_folder), chatml, stop_ids=[0])
    assert renderer.stop_ids == renderer.render([user()]).stop_ids == {0, 2}
