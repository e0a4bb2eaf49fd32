"""The grammar that holds an output to calls of declared tools, for `structured_outputs.grammar`.

A call is JSON as the published templates of Llama 3.1 to 3.3 write it, {"name": "f", "parameters": {...}},
and its arguments follow the tool's schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from corral.engine.grammar.compiler import GrammarCompiler
from corral.engine.grammar.forms import MAX_DEPTH, MAX_NESTING
from corral.engine.grammar.json_schema import canonical, checked
from corral.engine.sampling.params import StructuredOutputsParams
from corral.errors import RequestError
from corral.text.control_tokens import PYTHON_TAG

Schema = Mapping[str, Any]
Answer = Schema | Literal["object", "text"] | None

MAX_CALLS = 16
SEPARATOR = "; "

_PREFIX = "structured_outputs."
# What says itself how open the arguments are to names that the schema does not give.
_DATA = ("const", "enum", "default", "examples")
_OPEN = ("additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf", "allOf")


def call_grammar(
    tools: Sequence[Schema],
    *,
    several: bool = False,
    answer: Answer = None,
    arguments_key: str = "parameters",
    opening: str = "",
    closing: str = "",
) -> str:
    """The grammar of calls in llguidance's dialect of Lark.

    Args:
        tools: those that may be called, at least one, in OpenAI's form.
        several: 1 to 16 calls may come, separated by "; "; otherwise exactly one.
        answer: what may come instead of calls: JSON of a schema, any JSON "object", or "text" that does not
            hold what a parser would take for the beginning of a call. None: nothing but calls.
        arguments_key: what the prompt calls the arguments.
        opening, closing: what stands around each call in the prompt's form.

    Raises:
        RequestError: a schema is refused; the message names it as `tools[i].function.parameters`.
    """
    assert tools, "no tool may be called"
    parameters = [_parameters(i, tool) for i, tool in enumerate(tools)]
    names = [str(tool["function"]["name"]) for tool in tools]
    plain = answer is None or answer == "text"
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, (name, schema) in enumerate(zip(names, parameters, strict=True)):
        if plain:
            before = f'{opening}{{"name": {_json(name)}, "{arguments_key}": '
            rules += [
                f"call_{i}: {_quoted(before)} arguments_{i} {_quoted('}' + closing)}",
                f"arguments_{i}: %json {_json(schema)}",
            ]
        else:
            # Beside other JSON: read in the same parts as that, so that any part can tell the two apart.
            around = [_quoted(text) if text else "" for text in (opening, closing)]
            rules += [
                f"call_{i}: {around[0]} object_{i} {around[1]}",
                f"object_{i}: %json {_json(_whole_call(name, schema, arguments_key))}",
            ]
    more = f" ({_quoted(SEPARATOR)} call){{0,{MAX_CALLS - 1}}}" if several else ""
    start = f"start: call{more}" + (
        "" if answer is None else " | ANSWER" if answer == "text" else " | answer"
    )
    return "\n".join([start, *rules, *_answer(answer, names), ""])


def explain_refusal(compiler: GrammarCompiler, tools: Sequence[Schema], error: RequestError) -> RequestError:
    """The error for a grammar of calls that does not compile, with the tool whose schema is to blame.

    The engine compiles the whole grammar and cannot tell; here each schema is compiled alone.
    """
    for i, tool in enumerate(tools):
        try:
            compiler.compile(StructuredOutputsParams(json=_parameters(i, tool)), frozenset())
        except RequestError as one:
            return RequestError(str(one).replace(f"{_PREFIX}json", _field(i), 1))
    return error


def _field(index: int) -> str:
    return f"tools[{index}].function.parameters"


def _parameters(index: int, tool: Schema) -> dict[str, Any]:
    """The schema of a tool's arguments, checked; without what it does not name, unless it says otherwise.

    Raises:
        RequestError: it is refused, or is not that of an object.
    """
    field = _field(index)
    given = tool["function"].get("parameters")
    stated = {} if given is None else given
    if isinstance(stated, Mapping) and stated.get("type", "object") != "object":
        raise RequestError(f"{field} has the type {stated['type']!r}; arguments are an object")
    try:
        schema: dict[str, Any] = json.loads(canonical(field, stated))
        if not any(keyword in schema for keyword in _OPEN):
            schema = {"properties": {}, **schema, "type": "object", "additionalProperties": False}
        checked(field, json.dumps(schema), MAX_NESTING, MAX_DEPTH)
    except RequestError as error:
        raise RequestError(str(error).removeprefix(_PREFIX)) from None
    return schema


def _whole_call(name: str, parameters: Schema, arguments_key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": name},
            arguments_key: _moved(parameters, f"#/properties/{arguments_key}"),
        },
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema with its references changed for another place in a document."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: item if key in _DATA else _moved(item, place) for key, item in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference.removeprefix("#").removesuffix("/")
    return moved


def _answer(answer: Answer, names: Sequence[str]) -> list[str]:
    """The rule of what may come instead of calls."""
    if answer is None:
        return []
    if answer == "text":
        return ["ANSWER: " + _text_without_calls(names)]
    schema = {"type": "object"} if answer == "object" else json.loads(canonical("json", answer))
    return [f"answer: %json {_json(schema)}"]


def _text_without_calls(names: Sequence[str]) -> str:
    """The terminal of texts that do not hold the beginning of a call as `text.tool_calls` reads it.

    That is one of the names in its place, or what may stand before it. Kept simple: llguidance has to prove,
    at each place, that a text that holds one can never be right again.
    """
    name = "|".join(map(_escaped, names))
    before_name = r'<function=|\[\s*|\{[^{}]*"(name|function)"\s*:\s*"'
    beginnings = [
        _escaped(PYTHON_TAG),
        "<tool_call>",
        f'({before_name})({name})[>("]',
        r'\{[^{}]*"type"\s*:\s*"function"',
        r'\{\s*"(parameters|arguments)"\s*:',
        r'\{\s*"function"\s*:\s*\{',
    ]
    return f"/(?s:.*)/ & ~/(?s:.*({'|'.join(beginnings)}).*)/"


def _escaped(text: str) -> str:
    """A text as a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/")


def _quoted(text: str) -> str:
    """A text as a string of Lark, whose strings are JSON's."""
    return _json(text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
