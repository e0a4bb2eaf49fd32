"""Masks: what they allow at each place, with drafts and without; and one output's trouble is its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from corral.engine.grammar.compiler import GrammarCompiler
from corral.engine.grammar.errors import GrammarError
from corral.engine.grammar.matcher import CompiledGrammar, Grammar
from corral.engine.sampling.params import StructuredOutputsParams
from corral.text.tokenizer import Tokenizer
from tests.engine.grammar.conftest import STOP_IDS
from tests.engine.grammar.driver import RandomModel, allowed_ids, allows
from tests.engine.grammar.schemas import SCHEMAS

FORMS: list[dict[str, Any]] = [
    *(
        {"json": SCHEMAS[name]}
        for name in ("person", "tree", "tool call", "const object", "any object", "uri")
    ),
    {"regex": r"(\d+(\.\d+)?, ?){2,}"},
    {"choice": ("one", "one two", "one two three")},
    {"grammar": 'start: "(" start ")" | name\nname[lazy]: /[a-z ]*\\./'},
    {"grammar": 'start: item+ "."\nitem[max_tokens=3]: /[a-z]+/'},
]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("form", FORMS, ids=[str(i) for i in range(len(FORMS))])
def test_masks_with_drafts_equal_masks_step_by_step_and_change_nothing(
    form: dict[str, Any], llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(**form), STOP_IDS)
    tokens = RandomModel(llama3_tokenizer, STOP_IDS, seed=5).write(grammar.matcher())
    plain, drafting = grammar.matcher(), grammar.matcher()
    singles = plain.masks()
    for token in tokens:
        plain.accept(token)
        singles.extend(plain.masks())
    for at in range(len(tokens) + 1):
        right = tokens[at : at + 5]
        assert _same(drafting.masks(right), singles[at : at + len(right) + 1])
        wrong = [*right[:2], 128009, *right]
        assert _same(drafting.masks(wrong), singles[at : at + len(right[:2]) + 1])
        if at < len(tokens):
            drafting.accept(tokens[at])


def test_drafts_that_do_not_fit_are_cut_off(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(choice=("one two", "one three")), STOP_IDS)
    one, two, three, four = (llama3_tokenizer.encode(text)[0] for text in ("one", " two", " three", " four"))
    matcher = grammar.matcher()
    assert len(matcher.masks([one, two, 128009, one])) == 3
    assert len(matcher.masks([one, four, two])) == 2
    assert len(matcher.masks([one, 128009])) == 2
    assert len(matcher.masks([-1])) == len(matcher.masks([10**9])) == len(matcher.masks([128300])) == 1
    matcher.accept(one)
    assert {two, three} <= set(allowed_ids(matcher.masks()[0]))


def test_stop_ids_come_exactly_where_the_text_may_end(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    newline = llama3_tokenizer.encode("\n")[0]
    stop_ids = frozenset([*STOP_IDS, newline, 128310])
    grammar = llama3_compiler.compile(StructuredOutputsParams(regex="a(b|\n){2,3}"), stop_ids)
    matcher = grammar.matcher()
    assert matcher.masks()[0].shape == (4010,)
    for token in llama3_tokenizer.encode("a") + 2 * llama3_tokenizer.encode("b"):
        assert not stop_ids & set(allowed_ids(matcher.masks()[0]))
        matcher.accept(token)
    assert not matcher.complete
    assert stop_ids < set(allowed_ids(matcher.masks()[0]))
    ended = matcher.fork()
    ended.accept(newline)
    assert ended.finished
    matcher.accept(llama3_tokenizer.encode("b")[0])
    assert set(allowed_ids(matcher.masks()[0])) == stop_ids
    assert matcher.complete
    assert not matcher.finished


def test_control_tokens_and_padding_are_never_content(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(regex="(?s:.){9,}"), STOP_IDS)
    matcher = grammar.matcher()
    allowed = set(allowed_ids(matcher.masks()[0]))
    assert len(allowed) > 120_000
    assert max(allowed) < 128_000
    assert not any(llama3_tokenizer.is_control(int(i)) for i in allowed)


def test_a_token_that_is_not_allowed_ends_that_output_only(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(regex="[0-9]+"), STOP_IDS)
    good, bad = grammar.matcher(), grammar.matcher()
    with pytest.raises(GrammarError, match=r"structured_outputs\.regex does not allow the token .*x"):
        bad.accept(llama3_tokenizer.encode("x")[0])
    with pytest.raises(GrammarError, match="does not allow the text to end yet"):
        grammar.matcher().accept(128009)
    good.accept(llama3_tokenizer.encode("7")[0])
    assert allows(good.masks()[0], 128009)


def test_a_limit_that_one_output_passes_ends_that_output_only(
    monkeypatch: pytest.MonkeyPatch, small_tokenizer: Callable[[str], Tokenizer]
) -> None:
    tight = partial(LLParserLimits, max_items_in_row=60)
    monkeypatch.setattr("corral.engine.grammar.compiler.LLParserLimits", tight)
    tokenizer = small_tokenizer("chatml")
    compiler, token = GrammarCompiler(tokenizer, tokenizer.vocab_size), tokenizer.encode("a")[0]
    grammar = compiler.compile(StructuredOutputsParams(grammar='start: start start | "a"'), frozenset([2]))
    other = grammar.matcher()
    before = other.masks()
    matcher, num_masks = grammar.matcher(), []

    def go_on() -> None:
        for _ in range(200):
            num_masks.append(len(matcher.masks([token] * 3)))
            matcher.accept(token)

    with pytest.raises(GrammarError, match=r"structured_outputs\.grammar is too complex: .*after \d+ tokens"):
        go_on()
    assert num_masks[0] == 4
    assert num_masks[-1] < 4  # near the limit drafts are cut off, and the output goes on without them
    assert _same(other.masks(), before)
    assert _same(grammar.matcher().masks(), before)


def test_an_automaton_that_one_output_wears_out_is_made_anew_for_all(
    monkeypatch: pytest.MonkeyPatch, small_tokenizer: Callable[[str], Tokenizer]
) -> None:
    monkeypatch.setattr("corral.engine.grammar.compiler._MAX_LEXER_STATES", 2000)
    alone: list[CompiledGrammar] = []
    plain = CompiledGrammar.begin_alone

    def begin_alone(compiled: CompiledGrammar) -> LLMatcher:
        alone.append(compiled)
        return plain(compiled)

    monkeypatch.setattr(CompiledGrammar, "begin_alone", begin_alone)
    tokenizer = small_tokenizer("chatml")
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    params = StructuredOutputsParams(regex="((a|b)*a(a|b){18}c)*")  # has 2^18 states
    grammar = compiler.compile(params, frozenset([2]))
    other, busy = grammar.matcher(), grammar.matcher()
    start = other.masks()
    first = tokenizer.encode("a")[0]
    other.accept(first)
    after_first = other.masks()
    letters = random.Random(0)
    while not alone:
        busy.accept(letters.choice([i for i in allowed_ids(busy.masks()[0]) if i != 2]))
    assert _same(other.masks(), after_first)
    assert len(alone) == 2
    assert _same(grammar.matcher().masks(), start)
    assert _same(compiler.compile(params, frozenset([2])).matcher().masks(), start)
    assert len(alone) == 2


def test_forced_tokens_are_all_allowed_in_a_row(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    schema = {
        "type": "object",
        "properties": {"a_long_property_name": {"const": "and its long value"}, "b": {"type": "integer"}},
        "required": ["a_long_property_name", "b"],
    }
    grammar = llama3_compiler.compile(StructuredOutputsParams(json=schema), STOP_IDS)
    matcher = grammar.matcher()
    forced_most = 0
    for position in range(200):
        before = matcher.masks()
        forced = matcher.forced()
        forced_most = max(forced_most, len(forced))
        assert len(matcher.masks(forced)) == len(forced) + 1
        assert _same(matcher.masks(), before)
        matcher.accept(RandomModel(llama3_tokenizer, STOP_IDS, position).choose(before[0], position))
        if matcher.finished:
            break
    assert matcher.finished
    assert matcher.forced() == []
    assert forced_most >= 3


def test_forks_go_on_independently(llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(json=SCHEMAS["person"]), STOP_IDS)
    matcher, model = grammar.matcher(), RandomModel(llama3_tokenizer, STOP_IDS, seed=1)
    for position in range(8):
        matcher.accept(model.choose(matcher.masks()[0], position))
    fork, before = matcher.fork(), matcher.masks()
    model.write(fork)
    assert fork.finished
    assert _same(matcher.masks(), before)
    assert not matcher.finished


def test_a_long_forced_text_does_not_slow_each_token_down(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "All work and no play makes Jack a dull boy. " * 1000
    grammar = llama3_compiler.compile(StructuredOutputsParams(choice=(text,)), STOP_IDS)
    matcher, tokens = grammar.matcher(), llama3_tokenizer.encode(text)[:50]
    encoded: list[int] = []
    plain = Tokenizer.encode

    def encode(tokenizer: Tokenizer, text: str, *, first: bool = False) -> list[int]:
        encoded.append(len(text))
        return plain(tokenizer, text, first=first)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    for token in tokens:
        assert allows(matcher.masks()[0], token)
        matcher.accept(token)
    assert encoded
    assert max(encoded) < 2000


def test_threads_may_compile_and_use_one_grammar_at_once(
    small_tokenizer: Callable[[str], Tokenizer],
) -> None:
    tokenizer = small_tokenizer("chatml")
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    expected = RandomModel(tokenizer, frozenset([2]), seed=3)
    made: list[Grammar] = []
    texts: list[list[int]] = []
    barrier = threading.Barrier(4)

    def work(name: str) -> None:
        barrier.wait()
        grammar = compiler.compile(StructuredOutputsParams(json=SCHEMAS[name]), frozenset([2]))
        made.append(grammar)
        texts.append(RandomModel(tokenizer, frozenset([2]), seed=3).write(grammar.matcher()))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("person", "person", "tree", "text")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(grammar.environment) for grammar in made}) == 1
    alone = compiler.compile(StructuredOutputsParams(json=SCHEMAS["person"]), frozenset([2]))
    assert texts.count(expected.write(alone.matcher())) == 2


def test_only_what_was_used_last_is_kept(
    small_tokenizer: Callable[[str], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.engine.grammar.compiler._MAX_KEPT", 2)
    compiler = GrammarCompiler(small_tokenizer("chatml"), 400)

    def compiled(regex: str, stop_id: int = 2) -> CompiledGrammar:
        return compiler.compile(StructuredOutputsParams(regex=regex), frozenset([stop_id])).compiled

    first, second = compiled("a"), compiled("b")
    assert compiled("a", stop_id=1) is first
    compiled("c")
    assert compiled("a") is first
    assert compiled("b") is not second
