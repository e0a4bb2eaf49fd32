"""The table of what models write, through every way of cutting it into parts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.text.tool_calls.parser import CallParser
from corral.text.tool_calls.pieces import CallArguments, CallBegun, CallEnded, TextPiece
from tests.text.tool_calls.corpus import BUILTIN, CORPUS, TAG, TOOLS, Broken, Call, Entry, F
from tests.text.tool_calls.reading import at_cuts, check_order, in_parts, joined, parser_for, read

SOURCES = [entry.source for entry in CORPUS]
# What texts are made of that look like calls and are none, or are calls in an odd place.
SHARDS = [
    *('{"name": "', "f", '", "parameters": {', '"x": ', '"y"', "1", "}", "]", "[", "{", '"', "\\", "'", ", "),
    *("<function=f>", "</function>", "<tool_call>", "</tool_call>", TAG, "```json\n", "```", "f(", "x=", ")"),
    *("brave_search.call(", "query=", "\n", "text", "type", ":", "null", "[f(x=1)]", F, "\\u12", "é", "``"),
    *("; ", " ", "<"),
]


def test_the_sources_of_the_table_are_all_different() -> None:
    assert len(set(SOURCES)) == len(SOURCES)


@pytest.mark.parametrize("entry", CORPUS, ids=SOURCES)
def test_a_text_holds_what_the_table_says(entry: Entry) -> None:
    pieces = joined(read(parser_for(entry), [entry.text], entry.complete))
    check_order(pieces)
    found = [piece for piece in pieces if isinstance(piece, TextPiece | CallEnded)]
    begun = [piece.name for piece in pieces if isinstance(piece, CallBegun)]
    assert begun == [e.name for e in entry.expected if not isinstance(e, str)]
    assert len(found) == len(entry.expected)
    for piece, expected in zip(found, entry.expected, strict=True):
        if isinstance(expected, str):
            assert piece == TextPiece(expected)
            continue
        assert isinstance(piece, CallEnded)
        if isinstance(expected, Broken):
            assert piece.call is None
            assert piece.arguments_text == expected.arguments_text
            assert expected.error in (piece.error or "")
            continue
        assert isinstance(expected, Call)
        assert piece.call is not None, piece.error
        assert piece.call.name == expected.name
        assert json.dumps(piece.call.arguments) == json.dumps(expected.arguments)  # 1 is not 1.0 nor True
        assert piece.arguments_text == json.dumps(expected.arguments, ensure_ascii=False)
        for note in expected.notes:
            assert any(note in one for one in piece.notes), piece.notes


@pytest.mark.parametrize("entry", CORPUS, ids=SOURCES)
def test_parts_of_any_size_give_what_the_whole_gives(entry: Entry) -> None:
    whole = joined(read(parser_for(entry), [entry.text], entry.complete))
    for size in (1, 2, 3, 5):
        pieces = read(parser_for(entry), in_parts(entry.text, size), entry.complete)
        check_order(pieces)
        assert joined(pieces) == whole


@given(entry=st.sampled_from(CORPUS), data=st.data())
def test_parts_cut_anywhere_give_what_the_whole_gives(entry: Entry, data: st.DataObject) -> None:
    cuts = data.draw(st.sets(st.integers(0, len(entry.text))))
    whole = joined(read(parser_for(entry), [entry.text], entry.complete))
    assert joined(read(parser_for(entry), at_cuts(entry.text, cuts), entry.complete)) == whole


@given(
    shards=st.lists(st.sampled_from(SHARDS), max_size=25),
    cuts=st.sets(st.integers(0, 300)),
    code=st.booleans(),
    parallel=st.booleans(),
    complete=st.booleans(),
)
def test_no_text_makes_the_parser_fail_or_depend_on_its_parts(
    shards: list[str], cuts: set[int], code: bool, parallel: bool, complete: bool
) -> None:
    entry = Entry("", "".join(shards), (), code=code, parallel=parallel, complete=complete)
    pieces = read(parser_for(entry), [entry.text], complete)
    check_order(pieces)
    cut = at_cuts(entry.text, {c for c in cuts if c < len(entry.text)})
    assert joined(read(parser_for(entry), cut, complete)) == joined(pieces)
    if not any(isinstance(piece, CallBegun) for piece in pieces):
        assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == entry.text


@given(text=st.text(max_size=60), cuts=st.sets(st.integers(0, 60)))
def test_text_without_declared_tools_stays_as_it_is(text: str, cuts: set[int]) -> None:
    parser = CallParser([])
    pieces = read(parser, at_cuts(text, {c for c in cuts if c < len(text)}))
    assert joined(pieces) == ([TextPiece(text)] if text else [])


def test_text_comes_at_once_and_a_call_when_its_name_is_known() -> None:
    parser = CallParser(TOOLS, builtin_tools=BUILTIN)
    assert parser.push("Hi, ") == [TextPiece("Hi,")]
    assert parser.push("you [") == [TextPiece(" you")]
    assert parser.push("or <") == [TextPiece(" [or")]
    assert parser.push('me: {"name": "get_weather"') == [TextPiece(" <me:")]
    begun, opened = parser.push(', "parameters": {"city": "Zü')
    assert isinstance(begun, CallBegun)
    assert opened == CallArguments(0, '{"city": "Zü')
    assert parser.push('ri"ch') == [CallArguments(0, 'ri"')]


def test_an_answer_in_json_streams_once_its_first_key_is_known() -> None:
    parser = CallParser(TOOLS)
    assert parser.push('{"answ') == []
    assert parser.push('er":') == [TextPiece('{"answer":')]
    assert parser.push(' {"name": "f", ') == [TextPiece(' {"name": "f",')]


def test_long_text_in_an_argument_streams_only_where_text_is_wanted() -> None:
    parser = CallParser(TOOLS)
    parser.push('{"name": "typed", "parameters": {"t": "ab')
    assert parser.push('c\\n"') == [CallArguments(0, 'c\\n"')]
    assert parser.push(', "i": "12') == []
    assert parser.push('"') == [CallArguments(0, ', "i": 12')]


def test_after_one_call_the_parser_is_done_where_one_is_wanted() -> None:
    parser = CallParser(TOOLS, parallel=False)
    parser.push(F[:-1])
    assert not parser.done
    ended = parser.push(F[-1] + "; more")[-1]
    assert isinstance(ended, CallEnded)
    assert parser.done
    assert parser.push(" and more") == []
    assert parser.finish(complete=True) == []


def test_ids_are_fresh() -> None:
    pieces = read(CallParser(TOOLS), [F + F])
    ids = [piece.id for piece in pieces if isinstance(piece, CallBegun)]
    assert len(set(ids)) == 2


NESTS = [
    '{"name": "f", "parameters": {"x": ' + "[" * 100_000,
    '{"name": "f", "parameters": {"x": ' + '{"a": ' * 20_000,
    "[f(x=" + "(" * 100_000,
    '{"x": ' * 20_000,
    "[" * 100_000,
    "[{" * 40_000,
    '[{"name": ' * 10_000,
    '<function=f>{"a": ' + '[{"b": ' * 14_000,
]


@pytest.mark.parametrize("text", NESTS, ids=[text[:20] for text in NESTS])
def test_nesting_is_bounded(text: str) -> None:
    check_order(read(CallParser(TOOLS), [text]))


LONG = [
    "a b\n" * 20_000,
    "<function" * 8_000,
    '{"name": "f", "parameters": {"x": "' + "y" * 60_000,
    '{"parameters": {"x": "' + "y" * 60_000 + '"}, "name": "nope"}',
    "`" * 60_000,
    "```json\n{" * 6_000,
    '```json\n{"parameters": "' * 3_000,
    '{"name": "f", "parameters": {}, "x": ' * 2_000,
    '{"name": "f", "parameters": {}; ' * 2_000,
    TAG + 'brave_search.call(query="' + '" ' * 30_000,
    TAG + 'brave_search.call(query="' + '", a' * 16_000,
    "[f(x='" + "'\"" * 20_000,
    '{"id": [' + "1, " * 20_000,
    " " * 60_000,
    "[f" + "a" * 60_000,
    '{"name": "f", "parameters": {"x": "' + "\\ud83e" * 10_000,
    "{" * 20_000 + "}" * 20_000,
    '{"type": ' * 8_000,
    "[f(x=" + "1," * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=[text[:30] for text in LONG])
def test_work_grows_with_the_text_and_no_faster(text: str) -> None:
    """Counted in what the reader does, not in time."""
    steps = [_work(text[: len(text) // n]) for n in (4, 2, 1)]
    assert steps[1] < 2.3 * steps[0] + 1000
    assert steps[2] < 2.3 * steps[1] + 1000


def _work(text: str) -> int:
    parser = CallParser(TOOLS, builtin_tools=BUILTIN)
    reader = parser._reader
    work = 0
    peek, since = reader.peek, reader.since

    def counted_peek():  # type: ignore[no-untyped-def]
        nonlocal work
        work += 1
        return peek()

    def counted_since(start: int) -> str:
        nonlocal work
        found = since(start)
        work += len(found)
        return found

    reader.peek, reader.since = counted_peek, counted_since  # type: ignore[method-assign]
    read(parser, in_parts(text, 1000))
    return work
