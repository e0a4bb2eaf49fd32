"""What cannot be held to is refused before it is admitted, in words, and the next request is served."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from corral.engine.grammar.compiler import GrammarCompiler
from corral.engine.grammar.forms import Form
from corral.engine.sampling.params import StructuredOutputsParams
from corral.errors import RequestError
from corral.text.tokenizer import Tokenizer
from tests.engine.grammar.conftest import STOP_IDS


def _nested(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


def _chain(length: int, last: Any) -> dict[str, Any]:
    links = {f"d{i}": {"properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(length)}
    return {"$defs": {**links, f"d{length}": last}, "$ref": "#/$defs/d0"}


def _either_or(count: int) -> dict[str, Any]:
    pairs = [[{"properties": {f"p{i}": {"const": side}}} for side in "ab"] for i in range(count)]
    return {"allOf": [{"anyOf": pair} for pair in pairs]}


SELF = {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"]}
EACH_OTHER = {
    "$defs": {
        "hen": {"type": "array", "items": {"$ref": "#/$defs/egg"}, "minItems": 1},
        "egg": {"anyOf": [{"$ref": "#/$defs/hen"}, {"allOf": [{"$ref": "#/$defs/egg"}]}]},
    },
    "$ref": "#/$defs/hen",
}

BAD_SCHEMAS: list[tuple[Any, str]] = [
    ('{"type": "object"', "is not JSON"),
    ("[1]", "a JSON schema is an object"),
    ({"const": float("nan")}, "is not JSON"),
    ({"default": {1, 2}}, "is not JSON"),
    ({"const": "\ud800"}, "surrogate"),
    (False, "cannot match anything: the schema is false"),
    ({"type": "text"}, "Invalid type: text"),
    ({"properties": 3}, "properties must be an object"),
    ({"type": "string", "pattern": "("}, "unclosed group"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "format": "ipv7"}, "Unknown format: ipv7"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "cannot match anything: minimum (5) is greater"),
    ({"type": "string", "minLength": 5, "maxLength": 3}, "cannot match anything: minLength (5)"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "cannot match anything: incompatible types"),
    ({"enum": []}, "cannot match anything"),
    ({"$ref": "#/$defs/lost"}, "a $ref to '#/$defs/lost', which is not in the schema"),
    ({"$ref": "https://example.org/schema"}, "'https://example.org/schema', which is outside the schema"),
    ({"$ref": "#"}, "cannot match anything that ends"),
    (SELF, "cannot match anything that ends: # needs itself"),
    (EACH_OTHER, "cannot match anything that ends: #/$defs/egg needs itself"),
    ({"type": "array", "prefixItems": [SELF], "minItems": 1}, "cannot match anything that ends"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "use anyOf"),
    ({"properties": {"a": {"items": {"not": {}}}}}, "uses 'not' at #/properties/a/items"),
    ({"$defs": {"a": {"uniqueItems": True}}, "$ref": "#/$defs/a"}, "uses 'uniqueItems' at #/$defs/a"),
    ({"$schema": "http://json-schema.org/draft-04/schema#", "if": {}, "then": {}}, "uses 'if' at #"),
    ({"dependentRequired": {"a": ["b"]}, "$schema": "http://json-schema.org/draft-07/schema#"}, "'dependent"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
    (_nested(150), "is nested deeper than 100 levels"),
    (_nested(20_000), "is nested"),
    (_chain(4_000, {}), "more than 200 schemas inside each other"),
    ({"enum": [f"value number {i}" for i in range(20_000)]}, "it may have 262144"),
    ({"properties": {f"p{i}": {"type": "integer"} for i in range(1000)}, "type": "object"}, "is too complex"),
    (_either_or(20), "is too complex"),
    ({"type": "string", "minLength": 10**20}, "cannot be used"),
]
BAD_REGEXES = [
    ("(", "unclosed group"),
    (r"(a)\1", "backreferences are not supported"),
    (r"\bword\b", "lookarounds not supported"),
    (r"[^\s\S]", "cannot match anything"),
    ("(a?){5000}a{5000}", "is too complex"),
    ("((((a{100}){100}){100}){100}){100}", "is too complex"),
    (r"((((\w{1,100}){1,100}){1,100}){1,100}){1,100}", "is too complex"),
    ("(" * 5000 + "a" + ")" * 5000, "nested"),
    ("a" * 70_000, "it may have 65536"),
    (3, "must be a text"),
]
BAD_GRAMMARS = [
    ("start: missing", "unknown name"),
    ('other: "a"', "no start rule"),
    ('start: "a', "lexer error"),
    ("", "no start rule"),
    ('start: "a" start', "cannot match anything that ends: the rule 'start'"),
    ('start: pair | start ")"\npair: "(" (pair | ["x"] start) // or so\n', "cannot match anything that ends"),
    ('start: "a" <|eot_id|>', "names the token <|eot_id|>"),
    ('start: <[128009]> | "a"', "names the token <[128009]>"),
    ("start: text\ntext[temperature=0.5]: /a+/", "sets temperature in a rule"),
    ('start: text "."\ntext[stop="x"]: /a+/', "sets stop in a rule"),
    ('start: %json {"x-guidance": {"lenient": true}, "not": {}}', "x-guidance"),
    ('start: %json {"if": {}, "then": {}}', "a JSON schema in it uses 'if'"),
    ("start: %json {nothing}", "a JSON schema in it is not JSON"),
    ("start: " + "(" * 50 + '"a"' + ")" * 50, "nested"),
    ("start: r0\n" + "\n".join(f'r{i}: "x" r{i + 1}' for i in range(3000)), "more than 200 rules"),
    ('start: x{1000}\nx: y{1000}\ny: "a"{1000}', "is too complex"),
    ('{"grammars": [{"json_schema": {}}]}', "expecting rule"),
    ('start: %lark { start: "a" start }', "has a grammar inside it"),
]
BAD_CHOICES: list[tuple[Any, str]] = [
    ([], "at least one text"),
    ("yes", "must be a list"),
    (["yes", 1], "holds 1"),
    (["\ud800"], "surrogate"),
    (["x" * 300_000], "it may have 262144"),
]
HOSTILE = [
    *(("json", value, words) for value, words in BAD_SCHEMAS),
    *(("regex", value, words) for value, words in BAD_REGEXES),
    *(("grammar", value, words) for value, words in BAD_GRAMMARS),
    *(("choice", value, words) for value, words in BAD_CHOICES),
]


@pytest.mark.parametrize(("field", "value", "words"), HOSTILE, ids=[f"{f}-{w}"[:60] for f, _, w in HOSTILE])
def test_a_hostile_form_is_refused_in_words_and_the_compiler_goes_on(
    field: str, value: Any, words: str, llama3_compiler: GrammarCompiler
) -> None:
    with pytest.raises(RequestError) as refused:
        llama3_compiler.compile(StructuredOutputsParams(**{field: value}), STOP_IDS)
    message = str(refused.value)
    assert message.startswith(f"structured_outputs.{field}")
    assert words in message
    assert "\n" not in message
    assert len(message) < 400
    after = llama3_compiler.compile(StructuredOutputsParams(regex=(field + words).encode().hex()), STOP_IDS)
    assert after.matcher().masks()[0].any()


def test_what_only_looks_endless_or_unsupported_is_compiled(llama3_compiler: GrammarCompiler) -> None:
    endings: list[dict[str, Any]] = [
        {"json": {"type": "object", "properties": {"self": {"$ref": "#"}}}},
        {"json": {"type": "array", "items": {"$ref": "#"}}},
        {"json": {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
        {"json": {**SELF, "properties": {"self": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}}}},
        {"json": {"$defs": {"unused": {"not": {}}}, "properties": {"not": {"const": {"if": 1}}}}},
        {"json": _chain(60, {"type": "null"})},
        {"json": json.loads(_nested(90))},
        {"grammar": 'start: "(" start? ")"'},
        {"grammar": 'start: "(" [start] ")" | "[" start{0,2} "]" | "<" start~0..2 ">" | "{" start* "}"'},
        {"grammar": '# a comment\nstart: "a" start // more\n  | "b"'},
        {"grammar": 'start: list::0\nlist::_: "x" list::incr(_) %if lt(_, 3) | "y"'},
    ]
    for params in endings:
        llama3_compiler.compile(StructuredOutputsParams(**params), STOP_IDS)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Compiling the regular expressions that start with "slow" waits for this event."""
    event, plain = threading.Event(), Form.grammar

    def grammar(form: Form) -> str:
        if form.text.startswith("slow"):
            assert event.wait(60)
        return plain(form)

    monkeypatch.setattr(Form, "grammar", grammar)
    return event


def test_a_form_that_takes_too_long_is_refused(
    waiting: threading.Event, small_tokenizer: Callable[[str], Tokenizer]
) -> None:
    compiler = GrammarCompiler(small_tokenizer("chatml"), 400, seconds=0.05)
    for attempt in range(4):
        with pytest.raises(RequestError, match=r"structured_outputs\.regex takes over 0\.05 seconds"):
            compiler.compile(StructuredOutputsParams(regex=f"slow{attempt}"), frozenset([2]))
    with pytest.raises(RequestError, match="try again later"):  # four are still at work
        compiler.compile(StructuredOutputsParams(regex="quick"), frozenset([2]))
    waiting.set()


def test_others_are_compiled_while_one_takes_long(
    waiting: threading.Event, small_tokenizer: Callable[[str], Tokenizer]
) -> None:
    compiler = GrammarCompiler(small_tokenizer("chatml"), 400, seconds=60)
    done: list[str] = []

    def compile_slowly() -> None:
        compiler.compile(StructuredOutputsParams(regex="slow"), frozenset([2]))
        done.append("slow")

    thread = threading.Thread(target=compile_slowly)
    thread.start()
    compiler.compile(StructuredOutputsParams(regex="quick"), frozenset([2]))
    done.append("quick")
    waiting.set()
    thread.join()
    assert done == ["quick", "slow"]
