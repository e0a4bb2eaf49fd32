"""Outputs held to calls: whatever a model writes, the parser finds declared calls with valid arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from corral.checkpoints.source import open_checkpoint
from corral.engine.grammar.calls import Answer, call_grammar, explain_refusal
from corral.engine.grammar.compiler import GrammarCompiler
from corral.engine.grammar.errors import GrammarError
from corral.engine.sampling.params import StructuredOutputsParams
from corral.errors import RequestError
from corral.text.tokenizer import Tokenizer
from corral.text.tool_calls.parser import CallParser
from corral.text.tool_calls.pieces import CallEnded, ChatPiece, TextPiece
from tests.engine.grammar.driver import RandomModel

CITY = {"type": "string", "maxLength": 20}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": CITY, "unit": {"type": "string", "enum": ["C", "F"]}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "math.add",
            "parameters": {
                "$defs": {"n": {"type": "integer", "minimum": -99, "maximum": 99}},
                "type": "object",
                "properties": {"terms": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 3}},
                "required": ["terms"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in TOOLS}
ANSWER = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHORT = {"type": "object", "properties": {"a": CITY}, "additionalProperties": False}
STOP = frozenset([2])


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    """SmolLM2's own."""
    return open_checkpoint(smollm2_path).tokenizer()


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    """For SmolLM2. A busy machine is no reason to refuse."""
    return GrammarCompiler(tokenizer, 49152, seconds=120)


@pytest.fixture(scope="module")
def parsed(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> Callable[[str, int], tuple[str, list[ChatPiece]]]:
    """What a model that knows nothing writes through a grammar, and what the parser finds in it."""

    def write(grammar: str, seed: int) -> tuple[str, list[ChatPiece]]:
        matcher = compiler.compile(StructuredOutputsParams(grammar=grammar), STOP).matcher()
        text = tokenizer.decode(RandomModel(tokenizer, STOP, seed).write(matcher))
        parser = CallParser(TOOLS)
        return text, parser.push(text) + parser.finish(complete=True)

    return write


def valid_calls(pieces: list[ChatPiece]) -> int:
    """How many calls there are; all must be valid, and without notes."""
    ended = [piece for piece in pieces if isinstance(piece, CallEnded)]
    for piece in ended:
        assert piece.call is not None, piece.error
        jsonschema.validate(piece.call.arguments, SCHEMAS[piece.call.name])
        assert piece.notes == ()
    return len(ended)


def texts(pieces: list[ChatPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("around", [("", ""), ("<tool_call>\n", "\n</tool_call>")])
def test_nothing_but_calls_comes_where_calls_are_forced(
    several: bool,
    around: tuple[str, str],
    parsed: Callable[[str, int], tuple[str, list[ChatPiece]]],
) -> None:
    key = "arguments" if around[0] else "parameters"
    grammar = call_grammar(TOOLS, several=several, arguments_key=key, opening=around[0], closing=around[1])
    counts = []
    for seed in range(12):
        text, pieces = parsed(grammar, seed)
        assert text.startswith(around[0] + '{"name": "')
        assert f'", "{key}": ' in text
        assert not texts(pieces)
        counts.append(valid_calls(pieces))
    assert set(counts) == {1} if not several else 1 in counts and max(counts) in range(2, 17)


@pytest.mark.parametrize("answer", [ANSWER, SHORT], ids=["like a call", "short"])
def test_an_answer_in_a_schema_may_come_instead(
    answer: dict[str, Any], parsed: Callable[[str, int], tuple[str, list[ChatPiece]]]
) -> None:
    grammar = call_grammar(TOOLS, several=True, answer=answer)
    answers = 0
    for seed in range(16):
        text, pieces = parsed(grammar, seed)
        if not valid_calls(pieces):
            assert texts(pieces) == text
            jsonschema.validate(json.loads(text), answer)
            answers += 1
    assert answers


def test_text_may_come_instead_but_holds_no_call(
    parsed: Callable[[str, int], tuple[str, list[ChatPiece]]],
) -> None:
    grammar = call_grammar(TOOLS, answer="text")
    for seed in range(8):
        text, pieces = parsed(grammar, seed)
        assert valid_calls(pieces) or texts(pieces) == text


@pytest.mark.parametrize(
    ("answer", "text", "accepted"),
    [
        (None, '{"name": "now", "parameters": {}}', True),
        (None, '{"name": "now", "parameters": {"x": 1}}', False),
        (None, '{"name": "nope", "parameters": {}}', False),
        (None, '{"name": "get_weather", "parameters": {}}', False),
        (None, "Hello", False),
        ("text", "Hello, {name}: see [1] and [now].", True),
        ("text", 'A person: {"name": "Ann", "id": 3}\n```json\n{"name": "Bob"}\n```', True),
        ("text", "", True),
        ("text", '{"name": "now", "parameters": {}}', True),
        ("text", '{"name": "now", "parameters": {"x": 1}}', False),
        ("text", 'I call {"name": "now", "parameters": {}}', False),
        ("text", '{"id": 1, "name": "now", "parameters": {"x": 1}}', False),
        ("text", '{"type": "function", "name": "now"}', False),
        ("text", "[now(x=1)]", False),
        ("text", "Well [math.add(terms=1)]", False),
        ("text", "<function=now>{}</function>", False),
        ("text", "<tool_call>", False),
        ("text", "```json\n[{\"name\": \"now\"}]```", False),
        ("text", '```{"name": "now"}```', False),
        (ANSWER, '{"name": "Ann", "age": 3}', True),
        (ANSWER, '{"name": "now", "age": 3}', True),
        (ANSWER, '{"name": "now", "parameters": {}}', True),
        (ANSWER, '{"name": "math.add", "parameters": {"terms": [1, -99]}}', True),
        (ANSWER, '{"name": "math.add", "parameters": {"terms": [100]}}', False),
        (ANSWER, '{"name": "Ann", "parameters": {}}', False),
        (ANSWER, '{"name": "now", "parameters": {}, "age": 3}', False),
        ("object", '{"a": [1, {"b": null}]}', True),
        ("object", '{"name": "now", "parameters": {}}', True),
        ("object", "[1]", False),
    ],
)  # fmt: skip
def test_what_may_come(
    answer: Answer, text: str, accepted: bool, tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    grammar = call_grammar(TOOLS, answer=answer)
    matcher = compiler.compile(StructuredOutputsParams(grammar=grammar), STOP).matcher()
    try:
        for token in [*tokenizer.encode(text), 2]:
            matcher.accept(token)
    except GrammarError:
        assert not accepted
    else:
        assert accepted


def test_text_may_come_beside_many_tools(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    tools = [*TOOLS, *({"type": "function", "function": {"name": f"the_tool_no_{i}"}} for i in range(60))]
    params = StructuredOutputsParams(grammar=call_grammar(tools, several=True, answer="text"))
    grammar = compiler.compile(params, STOP)
    call = '{"name": "the_tool_no_59", "parameters": {}}'
    for text in (call, f"{call}; {call}", 'An {"id": 1, "name": "the_tool"} and [the_tool_no_61]'):
        matcher = grammar.matcher()
        for token in [*tokenizer.encode(text), 2]:
            matcher.accept(token)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": "string"}, "has the type 'string'; arguments are an object"),
        ({"properties": {"a": {"not": {}}}}, "uses 'not' at #/properties/a"),
        ({"properties": {"a": {"$ref": "#/x"}}}, r"has a \$ref to '#/x'"),
        (["a"], r"is \['a'\]; a JSON schema is an object"),
    ],
)
def test_a_refused_schema_is_named_by_its_tool(parameters: Any, message: str) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": parameters}}
    with pytest.raises(RequestError, match=r"^tools\[1\]\.function\.parameters " + message):
        call_grammar([TOOLS[0], bad])


def test_a_schema_that_only_the_compiler_refuses_is_named_too(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}}
    tools = [TOOLS[0], {"type": "function", "function": {"name": "bad", "parameters": schema}}]
    with pytest.raises(RequestError) as caught:
        compiler.compile(StructuredOutputsParams(grammar=call_grammar(tools)), STOP)
    error = explain_refusal(compiler, tools, caught.value)
    assert str(error).startswith("tools[1].function.parameters ")
    other = RequestError("another reason")
    assert explain_refusal(compiler, TOOLS, other) is other
