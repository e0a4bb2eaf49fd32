"""Preferences share their prompt's tokens exactly, and only completions are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from corral.text.messages import Message
from corral.text.rendered import RenderOptions
from corral.tune.config import DataConfig
from corral.tune.data.dates import fixed_date
from corral.tune.data.parsed import Completion, Preference
from corral.tune.data.prepare import Prepared
from corral.tune.data.render import Writer
from corral.tune.examples import Item
from tests.tune.data.conftest import NAMES, PromptFormat
from tests.tune.data.items import as_pair, as_rated, trained_spans

Formats = Callable[[str], PromptFormat]

PROMPT = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("assistant", "\nHello."),
    Message("user", "Sing!"),
)


def items(known: PromptFormat, row: Any, kind: str = "dpo", **settings: Any) -> list[Item]:
    config = DataConfig(train="x", **settings)
    return Writer(kind, config, known.tokenizer, known.renderer).items(row, "row 1")


def says(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answers", [("La la.", "No."), ("\nLa", "  No"), ("\n\n", "x\n"), ("日本", "日光")])
def test_both_documents_begin_with_the_prompt_that_is_served(
    prompt_format: Formats, name: str, answers: tuple[str, str]
) -> None:
    known = prompt_format(name)
    chosen, rejected = answers
    (item,) = items(known, Preference(PROMPT, says(chosen), says(rejected)))
    pair = as_pair(item)
    served = known.renderer.render(PROMPT, (), RenderOptions(date=fixed_date(known.renderer))).tokens
    for example, answer in ((pair.chosen, chosen), (pair.rejected, rejected)):
        assert tuple(example.tokens[: len(served)].tolist()) == served
        assert np.flatnonzero(example.trained).tolist() == list(range(len(served), len(example)))
        kept = answer if name.endswith("-meta") or name == "chatml" else answer.strip()
        assert trained_spans(example, known.tokenizer) == [kept + known.end]


@pytest.mark.parametrize("eos", ["turn", "all", "last", "none"])
def test_of_completions_with_several_turns_only_the_assistants_are_trained(
    chatml: PromptFormat, eos: str
) -> None:
    chosen = (*says("La."), Message("user", "More!"), *says("La la."))
    (item,) = items(chatml, Preference(PROMPT, chosen, says("No.")), train_on_eos=eos)
    expected = {
        "turn": ["La.<|im_end|>", "La la.<|im_end|>"],
        "all": ["La.<|im_end|>", "<|im_end|>", "La la.<|im_end|>"],
        "last": ["La.", "La la.<|im_end|>"],
        "none": ["La.", "La la."],
    }
    assert trained_spans(as_pair(item).chosen, chatml.tokenizer) == expected[eos]
    (item,) = items(chatml, Preference(PROMPT, chosen, says("No.")), train_on="last")
    assert trained_spans(as_pair(item).chosen, chatml.tokenizer) == ["La la.<|im_end|>"]


def test_plain_texts_are_not_put_into_a_prompt_format(prompt_format: Formats) -> None:
    known = prompt_format("llama-3.1")
    (item,) = items(known, Preference("The sky is", " blue.", " green."))
    pair = as_pair(item)
    assert known.tokenizer.decode(pair.chosen.tokens.tolist()) == (
        "<|begin_of_text|>The sky is blue.<|end_of_text|>"
    )
    assert trained_spans(pair.rejected, known.tokenizer) == [" green.<|end_of_text|>"]


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2-meta", "chatml"])
@pytest.mark.parametrize("eos", ["turn", "none"])
def test_a_rating_is_of_the_completion_alone(prompt_format: Formats, name: str, eos: str) -> None:
    known = prompt_format(name)
    (item,) = items(known, Completion(PROMPT, says("La."), (), False), "kto", train_on_eos=eos)
    rated = as_rated(item)
    served = known.renderer.render(PROMPT, (), RenderOptions(date=fixed_date(known.renderer))).tokens
    assert tuple(rated.prompt.tolist()) == served
    end = known.end if eos == "turn" else ""
    assert known.tokenizer.decode(rated.completion.tolist()) == "La." + end
    assert not rated.desirable


def test_a_preference_gives_two_ratings(made_of: Callable[..., Prepared], chatml: PromptFormat) -> None:
    row = {"prompt": "Sing!", "chosen": [{"role": "assistant", "content": "La."}]}
    prepared = made_of([{**row, "rejected": [{"role": "assistant", "content": "No."}]}], "kto")
    desirable, undesirable = (as_rated(item) for item in prepared.train)
    assert (desirable.desirable, undesirable.desirable) == (True, False)
    assert np.array_equal(desirable.prompt, undesirable.prompt)
    assert chatml.tokenizer.decode(undesirable.completion.tolist()) == "No.<|im_end|>"
    assert prepared.train.lengths.tolist() == [len(desirable), len(undesirable)]


def test_preferences_between_equal_completions_are_left_out(made_of: Callable[..., Prepared]) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": b} for b in ("b", "c")]
    prepared = made_of(rows, "dpo")
    assert len(prepared.train) == 1
    assert prepared.report.sources[0].undecided == 1
    assert any("because both completions are the same" in line for line in prepared.report.lines())


def test_preferences_that_are_equal_up_to_the_cut_are_left_out(made_of: Callable[..., Prepared]) -> None:
    rows = [{"prompt": "a", "chosen": "b " * 50 + b, "rejected": "b " * 50 + "d"} for b in ("c", "e")]
    rows.append({"prompt": "a", "chosen": "b c", "rejected": "b d"})
    prepared = made_of(rows, "dpo", max_length=16)
    assert prepared.report.sources[0].undecided == 2
    assert len(prepared.train) == 1
