"""Whatever a model would like to say, the text has the form that was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import jsonschema
import pytest

from corral.engine.grammar.compiler import GrammarCompiler
from corral.engine.sampling.params import StructuredOutputsParams
from corral.text.tokenizer import Tokenizer
from tests.engine.grammar.conftest import STOP_IDS
from tests.engine.grammar.driver import RandomModel, allowed_ids, allows
from tests.engine.grammar.schemas import SCHEMAS

REGEXES = [
    r"[A-Z][a-z]{2,8}( [A-Z][a-z]*)?",
    r"^\d{4}-\d{2}-\d{2}$",
    r"(yes|no)(, (yes|no)){0,3}!?",
    r"https?://[a-z.]+/[^\s]{0,9}",
    r"[äöü€🦙]{3}|\$[0-9]+",
    r"a*?b+\"\\/[/]\n(?:x|)",
    r"(?i)hello",
]
CHOICES = [
    ("yes", "no", "yes, but"),
    (
        'say "hi"',
        "two\nlines\ttab",
        "back\\slash",
        "/slash/",
        "ünï©ôde 🦙 \u2028",
        "\x00\x7f",
        "a | b",
        "%json {}",
    ),
    ("", "x"),
]
GRAMMARS = [
    (
        'start: expr\nexpr: expr ("+" | "-") term | term\n'
        'term: NUMBER | "(" expr ")" // a sum\nNUMBER: /[0-9]{1,3}/',
        r"[0-9()+-]+",
    ),
    (
        '%import common.INT\n%ignore /[ ]{1,2}/\n?start: pair{1,3}\npair: key "=" value\n  | key "!"\n'
        'key: WORD\nvalue[capture]: INT | ["-"] INT\nWORD: /[a-z]+/ & ~/(if|else)/',
        r"( *[a-z]+ *(= *-? *[0-9]+|!) *)+",
    ),
    (
        'start: "call " call\ncall: %json {"const": {"f": [1, "}"]}} ";"',
        r'call \{\s*"f"\s*:\s*\[\s*1\s*,\s*"\}"\s*\]\s*\};',
    ),
]


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_validates_against_its_schema(
    name: str, llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    schema = SCHEMAS[name]
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator.check_schema(schema)
    for given in (schema, json.dumps(schema)):
        grammar = llama3_compiler.compile(StructuredOutputsParams(json=given), STOP_IDS)
        seed = len(name) + isinstance(given, str)
        tokens = RandomModel(llama3_tokenizer, STOP_IDS, seed).write(grammar.matcher())
        value = json.loads(llama3_tokenizer.decode(tokens))
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)


@pytest.mark.parametrize("regex", REGEXES)
def test_the_whole_text_matches_the_regular_expression(
    regex: str, llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(regex=regex), STOP_IDS)
    for seed in range(5):
        tokens = RandomModel(llama3_tokenizer, STOP_IDS, seed).write(grammar.matcher())
        assert re.fullmatch(regex, llama3_tokenizer.decode(tokens))


@pytest.mark.parametrize("choice", CHOICES, ids=["plain", "odd", "empty"])
def test_every_choice_and_nothing_else_can_be_written(
    choice: tuple[str, ...], llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(choice=choice), STOP_IDS)
    for text in choice:
        matcher = grammar.matcher()
        for token in [*llama3_tokenizer.encode(text), 128009]:
            assert allows(matcher.masks()[0], token)
            matcher.accept(token)
        assert matcher.finished
    for seed in range(20):
        tokens = RandomModel(llama3_tokenizer, STOP_IDS, seed).write(grammar.matcher())
        assert llama3_tokenizer.decode(tokens) in choice


@pytest.mark.parametrize(("grammar", "expected"), GRAMMARS, ids=["sums", "pairs", "json inside"])
def test_a_lark_grammar_is_followed(
    grammar: str, expected: str, llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    compiled = llama3_compiler.compile(StructuredOutputsParams(grammar=grammar), STOP_IDS)
    for seed in range(5):
        tokens = RandomModel(llama3_tokenizer, STOP_IDS, seed).write(compiled.matcher())
        assert re.fullmatch(expected, llama3_tokenizer.decode(tokens))


def test_any_json_object_can_be_asked_for(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    grammar = llama3_compiler.compile(StructuredOutputsParams(json_object=True), STOP_IDS)
    for seed in range(3):
        tokens = RandomModel(llama3_tokenizer, STOP_IDS, seed).write(grammar.matcher())
        assert isinstance(json.loads(llama3_tokenizer.decode(tokens)), dict)


@pytest.mark.parametrize("kind", ["chatml", "legacy", "first", "always"])
def test_every_kind_of_vocabulary_can_be_held_to_a_form(
    kind: str, small_tokenizer: Callable[[str], Tokenizer]
) -> None:
    tokenizer = small_tokenizer(kind)
    compiler, stop_ids = GrammarCompiler(tokenizer, tokenizer.vocab_size), frozenset([2])
    for name in ("person", "unicode names", "const object", "tree", "enum of texts"):
        grammar = compiler.compile(StructuredOutputsParams(json=SCHEMAS[name]), stop_ids)
        for seed in range(2):
            tokens = RandomModel(tokenizer, stop_ids, seed).write(grammar.matcher())
            jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMAS[name])
    choice = ("the quick brown fox", "llamas: 羊駝 🦙")
    grammar = compiler.compile(StructuredOutputsParams(choice=choice), stop_ids)
    texts = {
        tokenizer.decode(RandomModel(tokenizer, stop_ids, seed).write(grammar.matcher()))
        for seed in range(20)
    }
    assert texts == set(choice)


def test_white_space_in_json_has_an_end(
    llama3_compiler: GrammarCompiler, llama3_tokenizer: Tokenizer
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    indented = llama3_tokenizer.encode(json.dumps({"a": 1}, indent=4))
    grammar = llama3_compiler.compile(StructuredOutputsParams(json=schema), STOP_IDS)
    assert len(grammar.matcher().masks(indented)) == len(indented) + 1
    for space in (" ", "\t", "\n"):
        matcher = grammar.matcher()
        for token in llama3_tokenizer.encode("{") + 64 * llama3_tokenizer.encode(space):
            assert allows(matcher.masks()[0], token)
            matcher.accept(token)
        following = [llama3_tokenizer.token_bytes(int(i)) for i in allowed_ids(matcher.masks()[0])]
        assert following
        assert not any(token[:1].isspace() for token in following)
