"""What the prompt formats write as calls is read back as the same calls."""

from __future__ import annotations

import json
import keyword
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from corral.text.call_formats import CallFormat, WrittenCalls, template_builtin_call, template_call
from corral.text.messages import ToolCall
from corral.text.tool_calls.parser import CallParser
from corral.text.tool_calls.pieces import TextPiece
from tests.text.tool_calls.corpus import TAG, tool
from tests.text.tool_calls.reading import calls_of, in_parts, read

NAMES = ("f", "get_weather", "math.factorial")
TOOLS = [tool(name) for name in NAMES]
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        '"',
        "'",
        "\\",
        "a\\",
        '{"name": "f"}',
        TAG,
        "</function>",
        "```",
        ")]",
        "\n",
        "\ud83e\udd99",
        '"""',
        "'''",
    ]
)
TEXTS = TEXTS.filter(lambda text: not any("\ud800" <= c < "\ue000" for c in text))
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["x", "y_2", "_z", "größe", *keyword.kwlist])


def as_calls(keys: st.SearchStrategy[str]) -> st.SearchStrategy[list[ToolCall]]:
    arguments = st.dictionaries(keys, VALUES, max_size=4)
    return st.lists(st.builds(ToolCall, st.sampled_from(NAMES), arguments), min_size=1, max_size=3)


def read_back(text: str, size: int, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    pieces = read(CallParser(TOOLS, **settings), in_parts(text, size))
    assert not [piece for piece in pieces if isinstance(piece, TextPiece)]
    return calls_of(pieces)


def same(found: list[tuple[str, dict[str, Any]]], calls: list[ToolCall]) -> bool:
    """Compared as JSON: 1 is not 1.0."""
    return json.dumps(found) == json.dumps([(call.name, call.arguments) for call in calls])


def text_of(written: WrittenCalls) -> str:
    return (TAG if written.python_tag else "") + written.text


@given(calls=as_calls(TEXTS), ipython=st.booleans(), size=st.integers(1, 9))
def test_metas_json(calls: list[ToolCall], ipython: bool, size: int) -> None:
    form = CallFormat("json", ipython, frozenset())
    assert same(read_back("\n".join(text_of(form.write([call])) for call in calls), size), calls)


@given(calls=as_calls(TEXTS), separator=st.sampled_from(["; ", ";", ",", "\n", ""]), size=st.integers(1, 9))
def test_the_templates_json(calls: list[ToolCall], separator: str, size: int) -> None:
    assert same(read_back(separator.join(map(template_call, calls)), size), calls)


@given(calls=as_calls(TEXTS), size=st.integers(1, 9))
def test_function_tags(calls: list[ToolCall], size: int) -> None:
    form = CallFormat("function_tag", False, frozenset())
    assert same(read_back("".join(text_of(form.write([call])) for call in calls), size), calls)


@given(calls=as_calls(KEYS), tagged=st.booleans(), size=st.integers(1, 9))
def test_pythonic_lists(calls: list[ToolCall], tagged: bool, size: int) -> None:
    form = CallFormat("pythonic_tagged" if tagged else "pythonic", False, frozenset())
    assert same(read_back(text_of(form.write(calls)), size), calls)


@given(query=TEXTS, code=st.booleans(), size=st.integers(1, 9))
def test_built_in_calls(query: str, code: bool, size: int) -> None:
    call = ToolCall("brave_search", {"query": query})
    form = CallFormat("json", True, frozenset(["brave_search"]))
    found = read_back(text_of(form.write([call])), size, builtin_tools=["brave_search"], code=code)
    assert same(found, [call])


@given(code=TEXTS.filter(lambda text: bool(text.strip(" \t\r\n"))), size=st.integers(1, 9))
def test_code(code: str, size: int) -> None:
    call = ToolCall("code_interpreter", {"code": f"x = {code}"})
    form = CallFormat("json", True, frozenset(["code_interpreter"]))
    assert same(read_back(text_of(form.write([call])), size, code=True), [call])


@given(query=st.text(alphabet="ab \"'é\n,=.(", max_size=20), size=st.integers(1, 9))
def test_the_templates_built_in_calls_whose_quotes_stand_as_they_are(query: str, size: int) -> None:
    call = ToolCall("wolfram_alpha", {"query": f"q{query}q"})
    if '"' in query and "," in query:
        return  # `", a=` may be the next argument: nothing tells
    text = TAG + template_builtin_call(call)
    assert same(read_back(text, size, builtin_tools=["wolfram_alpha"]), [call])


@given(code=st.text(alphabet="ab \"'é\n,=.()", max_size=20), size=st.integers(1, 9))
def test_the_templates_code_whose_quotes_stand_as_they_are(code: str, size: int) -> None:
    call = ToolCall("code_interpreter", {"code": f"q{code}q"})
    if '"' in code and "," in code:
        return
    assert same(read_back(TAG + template_builtin_call(call), size, code=True), [call])
