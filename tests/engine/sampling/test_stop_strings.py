from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.stop_strings import OutputText, StopStrings
from corral.text.tokenizer import Tokenizer
from tests.text.vocabularies import chatml_tokenizer_json

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)
IM_END = 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    return Tokenizer.from_hf(folder)


def first_stop(text: str, stops: list[str] | tuple[str, ...], beyond: int = 0) -> tuple[int, str] | None:
    """By trying every end: where the first stop string that ends beyond a place ends, and which it is."""
    for end in range(beyond + 1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_however_a_text_is_cut_the_same_stop_string_is_found_at_its_end(
    pieces: list[str], stops: list[str]
) -> None:
    finder, seen = StopStrings(stops), ""
    expected = first_stop("".join(pieces), stops)
    for piece in pieces:
        begun = len(finder.begun)
        text, stop = finder.push(piece)
        seen = seen[: len(seen) - begun] + text
        if stop is not None:
            assert (len(seen), stop) == expected
            return
        assert seen.endswith(finder.begun)
        longest = max((n for s in stops for n in range(len(s)) if seen.endswith(s[:n])), default=0)
        assert len(finder.begun) == longest  # no more is held than may still become a stop string
    assert expected is None


def run(tokenizer: Tokenizer, ids: list[int], params: SamplingParams) -> tuple[list[str], str | None]:
    output = OutputText(tokenizer, params, continues=False)
    pieces = []
    for token_id in ids:
        pieces.append(output.push(token_id))
        if output.stopped is not None:
            break
    return [*pieces, output.finish()], output.stopped


@given(st.data(), st.booleans(), st.booleans())
def test_the_pieces_joined_are_the_whole_text_cut_once(
    tokenizer: Tokenizer, data: st.DataObject, keeps: bool, skips: bool
) -> None:
    # Any ids at all: text, halves of characters, control tokens. Stop strings from the text, and others.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    whole = tokenizer.decode(ids, skip_control=skips)
    places = st.tuples(st.integers(0, len(whole)), st.integers(1, 6))
    inside = places.map(lambda place: whole[place[0] : place[0] + place[1]]).filter(bool)
    words = st.sampled_from(["\ufffd", "é", "the", "<|im"])
    stops = tuple(data.draw(st.lists(inside | words if whole else words, min_size=1, max_size=3)))
    params = SamplingParams(stop=stops, include_stop_str_in_output=keeps, skip_special_tokens=skips)
    pieces, stopped = run(tokenizer, ids, params)
    found = first_stop(whole, stops)
    if found is None:
        assert ("".join(pieces), stopped) == (whole, None)
    else:
        end, stop = found
        assert ("".join(pieces), stopped) == (whole[: end if keeps else end - len(stop)], stop)


@given(st.text("abé", min_size=1, max_size=20), STOPS, st.integers(0, 12))
def test_a_stop_string_that_is_complete_before_min_tokens_does_not_count(
    tokenizer: Tokenizer, text: str, stops: list[str], min_tokens: int
) -> None:
    ids = [i for character in text for i in tokenizer.encode(character)]
    early = tokenizer.decode(ids[: max(0, min_tokens - 1)])
    found = first_stop(text, stops, beyond=len(early.rstrip("\ufffd")))
    pieces, stopped = run(tokenizer, ids, SamplingParams(stop=tuple(stops), min_tokens=min_tokens))
    expected = text if found is None else text[: found[0] - len(found[1])]
    assert ("".join(pieces), stopped) == (expected, found and found[1])


def test_text_is_held_back_only_while_a_stop_string_may_have_begun(tokenizer: Tokenizer) -> None:
    ids = [i for character in "x\nUs\nUser:y" for i in tokenizer.encode(character)]
    pieces, stopped = run(tokenizer, ids, SamplingParams(stop=("\nUser:",)))
    assert pieces == ["x", "", "", "", "\nUs", "", "", "", "", "", ""]
    assert stopped == "\nUser:"
    kept, _ = run(tokenizer, ids, SamplingParams(stop=("\nUser:",), include_stop_str_in_output=True))
    assert kept == [*"x\nUs\nUser:", ""]


def test_a_stop_string_that_does_not_count_is_not_held_back(tokenizer: Tokenizer) -> None:
    ids = [i for character in "xSTOPy" for i in tokenizer.encode(character)]
    pieces, stopped = run(tokenizer, ids, SamplingParams(stop=("STOP",), min_tokens=20))
    assert pieces == ["x", "", "", "", "STOP", "y", ""]
    assert stopped is None


def test_the_rest_is_given_when_the_output_ends_otherwise(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello ST")
    pieces, stopped = run(tokenizer, ids, SamplingParams(stop=("STOP",)))
    assert pieces[-1] == "ST"
    assert "".join(pieces) == "hello ST"
    assert stopped is None


def test_nothing_comes_after_the_stop_string(tokenizer: Tokenizer) -> None:
    output = OutputText(
        tokenizer, SamplingParams(stop=("b",), include_stop_str_in_output=True), continues=False
    )
    text = "".join(output.push(i) for i in tokenizer.encode("abc abc"))
    assert text + output.finish() == "ab"


def test_control_tokens_are_left_out_or_kept_as_asked(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("hi"), IM_END]
    assert "".join(run(tokenizer, ids, SamplingParams())[0]) == "hi"
    kept, stopped = run(tokenizer, ids, SamplingParams(skip_special_tokens=False, stop=("|im",)))
    assert ("".join(kept), stopped) == ("hi<", "|im")


def test_without_a_tokenizer_there_is_no_text() -> None:
    output = OutputText(None, SamplingParams(), continues=False)
    assert output.push(5) + output.finish() == ""


def test_a_row_by_which_the_embedding_is_padded_has_no_text(tokenizer: Tokenizer) -> None:
    padded = tokenizer.vocab_size
    ids = [padded, *tokenizer.encode("hello"), padded + 4, *tokenizer.encode(" fox")]
    pieces, stopped = run(tokenizer, ids, SamplingParams(stop=("x",)))
    assert ("".join(pieces), stopped) == ("hello fo", "x")
