"""The decoded trained spans are exactly the assistant's words and the tokens that end its turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from corral.text.hf_tokenizer import from_json
from corral.text.messages import Message, ToolCall
from corral.text.rendered import RenderOptions
from corral.text.template import TemplateRenderer
from corral.tune.config import DataConfig
from corral.tune.data.dates import fixed_date
from corral.tune.data.masks import trained_tokens, turns_of
from corral.tune.data.parsed import Completion, Dialog, Text
from corral.tune.data.render import Writer
from tests.text.vocabularies import chatml_tokenizer_json
from tests.tune.data.conftest import NAMES, PromptFormat
from tests.tune.data.items import as_example, text_of, trained_spans

Formats = Callable[[str], PromptFormat]

FIRST, LAST = "4 🙂, für dich.", "It is 6.\n\n  - sure\n  - <|eot_id|> is no <|im_end|>"
CHAT = Dialog(
    (
        Message("system", "You calculate."),
        Message("user", "What is 2+2?"),
        Message("assistant", FIRST),
        Message("user", "And 3+3?"),
        Message("assistant", LAST),
    )
)
E = "<end>"  # stands for what ends a turn
EXPECTED = {
    ("assistant", "turn"): [FIRST + E, LAST + E],
    ("assistant", "all"): [E, E, FIRST + E, E, LAST + E],
    ("assistant", "last"): [FIRST, LAST + E],
    ("assistant", "none"): [FIRST, LAST],
    ("last", "turn"): [LAST + E],
    ("last", "all"): [E, E, E, E, LAST + E],
    ("last", "last"): [LAST + E],
    ("last", "none"): [LAST],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLED = Dialog(
    (
        Message("user", "Weather in Zürich?"),
        Message("assistant", "", (ToolCall("get_weather", {"city": "Zürich"}, "call00000"),)),
        Message("tool", {"temperature": 21}, tool_call_id="call00000"),
        Message("assistant", "21 degrees."),
    ),
    (TOOL,),
)
TEMPLATE_CALL = '{"name": "get_weather", "parameters": {"city": "Zürich"}}'
META_CALL = json.dumps(
    {"type": "function", "name": "get_weather", "parameters": {"city": "Zürich"}},
    indent=4,
    ensure_ascii=False,
)
PYTHONIC_CALL = "[get_weather(city='Zürich')]"


def written(name: PromptFormat, row: Any, kind: str = "sft", **settings: Any) -> Any:
    (item,) = Writer(kind, DataConfig(train="x", **settings), name.tokenizer, name.renderer).items(
        row, "row 1"
    )
    return as_example(item)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("train_on", "train_on_eos"), EXPECTED)
def test_what_is_trained_of_a_dialog(
    prompt_format: Formats, name: str, train_on: str, train_on_eos: str
) -> None:
    known = prompt_format(name)
    example = written(known, CHAT, train_on=train_on, train_on_eos=train_on_eos)
    wanted = [text.replace(E, known.end) for text in EXPECTED[train_on, train_on_eos]]
    assert trained_spans(example, known.tokenizer) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_trained_but_the_first_token(prompt_format: Formats, name: str) -> None:
    known = prompt_format(name)
    example = written(known, CHAT, train_on="all")
    assert not example.trained[0]
    assert example.trained[1:].all()
    without_ends = written(known, CHAT, train_on="all", train_on_eos="none")
    untrained = without_ends.tokens[1:][~without_ends.trained[1:]].tolist()
    assert untrained == [known.tokenizer.control_id(known.end)] * 5


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_those_that_the_model_is_served(prompt_format: Formats, name: str) -> None:
    known = prompt_format(name)
    example = written(known, CHAT)
    options = RenderOptions(add_generation_prompt=False, date=fixed_date(known.renderer))
    served = known.renderer.render(CHAT.messages, (), options).tokens
    assert tuple(example.tokens.tolist()) == served[: len(example)]
    assert known.tokenizer.decode(served[len(example) :]).strip() == ""


@pytest.mark.parametrize(
    ("name", "tool_format", "call"),
    [
        ("llama-3.1", None, TEMPLATE_CALL),
        ("llama-3.2", None, TEMPLATE_CALL),
        ("llama-3.3", None, TEMPLATE_CALL),
        ("llama-3.1-meta", "json", META_CALL),
        ("llama-3.1-meta", "function_tag", '<function=get_weather>{"city": "Zürich"}</function>'),
        ("llama-3.2-meta", "pythonic", PYTHONIC_CALL),
        ("llama-3.2-meta", "pythonic_tagged", '<|python_tag|>[get_weather(city="Zürich")]'),
        ("llama-3.3-meta", "pythonic", PYTHONIC_CALL),
    ],
)
def test_calls_of_tools_are_trained_and_results_are_not(
    prompt_format: Formats, name: str, tool_format: str | None, call: str
) -> None:
    known = prompt_format(name)
    example = written(known, CALLED, tool_format=tool_format)
    assert trained_spans(example, known.tokenizer) == [call + known.end, "21 degrees." + known.end]
    last = written(known, CALLED, tool_format=tool_format, train_on="last")
    assert trained_spans(last, known.tokenizer) == ["21 degrees." + known.end]


def test_tools_become_plain_messages_where_a_template_has_no_place(chatml: PromptFormat) -> None:
    spans = trained_spans(written(chatml, CALLED), chatml.tokenizer)
    assert spans == [TEMPLATE_CALL + chatml.end, "21 degrees." + chatml.end]


def test_all_calls_of_the_last_message_are_trained(prompt_format: Formats) -> None:
    known = prompt_format("llama-3.1")
    calls = tuple(ToolCall("get_weather", {"city": city}, city) for city in ("Rome", "Oslo"))
    row = Dialog((*CHAT.messages, Message("user", "Weather?"), Message("assistant", "", calls)), (TOOL,))
    spans = trained_spans(written(known, row, train_on="last"), known.tokenizer)
    assert [city in span for city, span in zip(("Rome", "Oslo"), spans, strict=True)] == [True, True]


def test_messages_of_weight_0_are_not_trained(chatml: PromptFormat) -> None:
    row = Dialog(CHAT.messages, (), frozenset({2}))
    assert trained_spans(written(chatml, row), chatml.tokenizer) == [LAST + chatml.end]
    with_system = Dialog(CHAT.messages[1:], (), frozenset({1}))
    spans = trained_spans(written(chatml, with_system, system="You calculate."), chatml.tokenizer)
    assert spans == [LAST + chatml.end]


@pytest.mark.parametrize("answer", ["\nHello", "\n\n  Hello", " Hello", "\tHello ", "Hello\n\n"])
def test_white_space_around_an_answer_is_trained_as_it_is_generated(
    chatml: PromptFormat, answer: str
) -> None:
    dialog = (
        Message("user", "hi"),
        Message("assistant", answer),
        Message("user", "?"),
        Message("assistant", answer),
    )
    example = written(chatml, Dialog(dialog))
    assert trained_spans(example, chatml.tokenizer) == [answer + chatml.end] * 2
    prompt = chatml.renderer.render(dialog[:1]).tokens
    assert tuple(example.tokens[: len(prompt)].tolist()) == prompt


def test_llama_3_trims_answers(prompt_format: Formats) -> None:
    known = prompt_format("llama-3")
    row = Dialog((Message("user", "hi"), Message("assistant", "\n Hello \n")))
    assert trained_spans(written(known, row), known.tokenizer) == ["Hello" + known.end]


@pytest.mark.parametrize("name", ["llama-3.1", "chatml"])
def test_a_text_is_trained_with_its_end(prompt_format: Formats, name: str) -> None:
    known = prompt_format(name)
    end = {"llama-3.1": "<|end_of_text|>", "chatml": "<|endoftext|>"}[name]
    example = written(known, Text("Once upon a time"))
    start = "<|begin_of_text|>" if name == "llama-3.1" else ""
    assert text_of(example, known.tokenizer) == f"{start}Once upon a time{end}"
    assert not example.trained[0]
    assert example.trained[1:].all()
    assert not written(known, Text("Once"), train_on_eos="none").trained[-1]


@pytest.mark.parametrize(("name", "end"), [("llama-3.1", "<|end_of_text|>"), ("chatml", "<|im_end|>")])
def test_a_plain_completion_is_trained_with_what_stops_generation(
    prompt_format: Formats, name: str, end: str
) -> None:
    known = prompt_format(name)
    example = written(known, Completion("The sky is", " blue."))
    assert trained_spans(example, known.tokenizer) == [" blue." + end]
    assert known.tokenizer.control_id(end) in known.renderer.stop_ids
    everything = written(known, Completion("The sky is", " blue."), train_on="all")
    assert everything.trained[1:].all()


def test_of_a_prompt_with_messages_only_the_completion_is_trained(chatml: PromptFormat) -> None:
    row = Completion(CHAT.messages[:4], CHAT.messages[4:])
    assert trained_spans(written(chatml, row), chatml.tokenizer) == [LAST + chatml.end]
    ends = written(chatml, row, train_on_eos="all")
    assert trained_spans(ends, chatml.tokenizer) == [LAST + chatml.end]


def test_pretraining_trains_all_of_a_dialog(chatml: PromptFormat) -> None:
    assert written(chatml, CHAT, "pretrain").trained[1:].all()


def test_the_system_message_of_the_configuration_is_for_dialogs_without_one(chatml: PromptFormat) -> None:
    other = written(chatml, Dialog(CHAT.messages[1:]), system="You add.")
    assert "system\nYou add.<|im_end|>" in text_of(other, chatml.tokenizer)
    own = written(chatml, CHAT, system="You add.")
    assert "You add." not in text_of(own, chatml.tokenizer)


GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + END }}{% endgeneration %}REST"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("inside", [True, False])
def test_masks_equal_those_of_transformers(inside: bool) -> None:
    """A template whose blocks leave the end of the turn out trains it all the same: else no answer ends."""
    template = GENERATION.replace("END", "'<|im_end|>'" if inside else "''").replace(
        "REST", "" if inside else "{{ '<|im_end|>' }}"
    )
    source = chatml_tokenizer_json()
    tokenizer = from_json(source, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    renderer = TemplateRenderer(tokenizer, template)
    example = written(PromptFormat("x", tokenizer, renderer, "<|im_end|>"), CHAT)
    theirs = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(source), eos_token="<|im_end|>")
    plain = [{"role": m.role, "content": m.content.replace("<|im_end|>", "")} for m in CHAT.messages]
    ours = written(
        PromptFormat("x", tokenizer, renderer, "<|im_end|>"),
        Dialog(tuple(Message(m["role"], m["content"]) for m in plain)),
    )
    expected = theirs.apply_chat_template(
        plain, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = expected["input_ids"], np.asarray(expected["assistant_masks"], dtype=bool)
    assert ours.tokens.tolist() == tokens[: len(ours)]
    if not inside:
        mask[np.flatnonzero(np.diff(mask.astype(int)) == -1) + 1] = True
    assert ours.trained.tolist() == mask[: len(ours)].tolist()
    assert trained_spans(example, tokenizer) == [FIRST + "<|im_end|>", LAST + "<|im_end|>"]


@given(
    turns=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=6),
    eos=st.sampled_from(["turn", "all", "last", "none"]),
    whole=st.booleans(),
)
def test_ends_are_trained_as_asked_whatever_the_dialog(
    turns: list[tuple[bool, int]], eos: Any, whole: bool
) -> None:
    """A header, some words and an end for each turn, the assistant's or another's."""
    produced, is_end, roles = [False], [False], []
    for assistant, words in turns:
        produced += [False] + [assistant] * (words + 1)
        is_end += [False] * (words + 1) + [True]
        roles.append(assistant)
    ends = np.asarray(is_end)
    trained = trained_tokens(turns_of(np.asarray(produced), ends), ends, eos, whole=whole)
    of_ends = trained[ends].tolist()
    expected = {
        "none": [False] * len(roles),
        "all": [True] * len(roles),
        "last": [False] * (len(roles) - 1) + [True],
        "turn": [whole or role for role in roles],
    }
    assert of_ends == expected[eos]
    assert trained[~ends].tolist() == [(whole or p) and i > 0 for i, p in enumerate(produced) if not ends[i]]


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2", "llama-3.3"])
def test_the_date_in_a_prompt_is_the_same_on_another_day(prompt_format: Formats, name: str) -> None:
    """The template of Llama 3.2 writes the day of rendering: rows would change from day to day."""
    known = prompt_format(name)
    assert "Today Date: 26 Jul 2024\n" in text_of(written(known, CHAT), known.tokenizer)


def test_the_date_in_a_template_is_given_where_it_has_a_place(chatml: PromptFormat) -> None:
    template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = TemplateRenderer(chatml.tokenizer, template)
    example = written(PromptFormat("x", chatml.tokenizer, renderer, chatml.end), CHAT)
    assert text_of(example, chatml.tokenizer).startswith("26 Jul 2024<|im_start|>system")
    without_place = TemplateRenderer(chatml.tokenizer, template.replace("date_string", "day"))
    example = written(PromptFormat("x", chatml.tokenizer, without_place, chatml.end), CHAT)
    assert not text_of(example, chatml.tokenizer).startswith("26 Jul 2024")
