"""Outputs of a network that are held to a form, through the whole engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from corral.engine.engine import Engine
from corral.engine.outputs import RequestOutput
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.errors import RequestError
from corral.text.tokenizer import Tokenizer
from tests.engine.engines import run, running_engine
from tests.engine.grammar.schemas import SCHEMAS
from tests.random_models import SMALL_CHAT, random_model
from tests.text.vocabularies import chatml_tokenizer_json

STOPS = frozenset({2})
END_SOON = dict.fromkeys(range(3, 400), -2.0)  # a random network seldom ends a text of its own accord


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    path.write_text(chatml_tokenizer_json())
    return Tokenizer.from_hf(path)


@pytest.fixture(scope="module", params=["plainly", "with guesses"])
def engine(vocabulary: Tokenizer, request: pytest.FixtureRequest) -> Iterator[Engine]:
    model = random_model(replace(SMALL_CHAT, max_position_embeddings=2048))
    speculate = "prompt_lookup" if request.param == "with guesses" else None
    with running_engine(
        model, tokenizer=vocabulary, num_blocks=900, block_size=16, speculate=speculate, max_model_len=2048
    ) as engine:
        yield engine


def ask(engine: Engine, forms: list[dict[str, Any]]) -> list[RequestOutput]:
    requests = [
        Request(
            [5, 6, 7],
            SamplingParams(
                seed=i,
                logit_bias=END_SOON,
                structured_outputs=StructuredOutputsParams(**form),
                max_tokens=2000,
            ),
            STOPS,
        )
        for i, form in enumerate(forms)
    ]
    return run(engine, requests)


def test_every_output_validates_against_its_schema(engine: Engine) -> None:
    schemas, ended = list(SCHEMAS.values()), 0
    for schema, output in zip(schemas, ask(engine, [{"json": s} for s in schemas]), strict=True):
        (completion,) = output.outputs
        assert completion.finish_reason in ("stop", "length"), completion.error
        if completion.finish_reason == "stop":
            ended += 1
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.validate(json.loads(completion.text), schema, format_checker=checker)
    assert ended >= 50


def test_objects_expressions_choices_and_grammars_are_held_to_as_well(engine: Engine) -> None:
    choices = ['say "yes"', "no", "vielleicht – später"]
    forms: list[dict[str, Any]] = [
        {"regex": r"[a-f]{3}-\d{2,4}"},
        {"choice": choices},
        {"grammar": 'start: "<" WORD ("," WORD){0,3} ">"\nWORD: /[a-z]{1,4}/'},
    ]
    expression, choice, grammar = (o.outputs[0].text for o in ask(engine, forms))
    assert re.fullmatch(r"[a-f]{3}-\d{2,4}", expression)
    assert choice in choices
    assert re.fullmatch(r"<[a-z]{1,4}(,[a-z]{1,4}){0,3}>", grammar)


def test_a_bad_schema_is_its_own_requests_error_and_nothing_elses(engine: Engine) -> None:
    good = Request([5], SamplingParams(max_tokens=50), STOPS)
    handle = engine.submit(good)
    for bad in ({"json": {"type": "strin"}}, {"json": "{"}, {"regex": "("}, {"grammar": "start: nothing"}):
        with pytest.raises(RequestError, match=rf"structured_outputs\.{next(iter(bad))}"):
            ask(engine, [bad])
    list(handle)
    assert ask(engine, [{"choice": ["a"]}])[0].outputs[0].text == "a"


def test_text_that_may_end_anywhere_ends_only_at_a_stop(engine: Engine) -> None:
    (output,) = ask(engine, [{"regex": "[ab]*"}])
    (completion,) = output.outputs
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] in STOPS
    assert set(completion.text) <= {"a", "b"}
