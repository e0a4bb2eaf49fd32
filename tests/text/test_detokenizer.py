from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.text.detokenizer import IncrementalDetokenizer
from corral.text.tokenizer import Tokenizer
from tests.text.vocabularies import chatml_tokenizer_json, sentencepiece_json


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    source = chatml_tokenizer_json() if request.param == "byte-level" else sentencepiece_json("legacy")
    (folder / "tokenizer.json").write_text(source, encoding="utf-8")
    return Tokenizer.from_hf(folder)


def pieces_of(tokenizer: Tokenizer, ids: list[int], *, skip_control: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_control=skip_control)
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


@given(st.data(), st.booleans())
def test_the_pieces_joined_equal_the_full_decode(
    tokenizer: Tokenizer, data: st.DataObject, skip_control: bool
) -> None:
    # Any ids at all: text, halves of characters, control tokens.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    pieces = pieces_of(tokenizer, ids, skip_control=skip_control)
    assert "".join(pieces) == tokenizer.decode(ids, skip_control=skip_control)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_valid_text_never_shows_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_nothing_but_an_incomplete_character_is_held_back(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    shown, given_bytes = "", b""
    for token_id in tokenizer.encode(text):
        given_bytes += tokenizer.token_bytes(token_id)
        shown += detokenizer.push(token_id)
        complete = given_bytes.decode("utf-8", "ignore")
        if tokenizer.prefix_space:
            complete = complete.removeprefix(" ")
        assert shown == complete


def test_bytes_that_never_become_a_character_are_shown_at_the_end(llama3_tokenizer: Tokenizer) -> None:
    ids = llama3_tokenizer.encode("🦙")
    assert len(ids) > 1
    assert pieces_of(llama3_tokenizer, ids) == [*[""] * (len(ids) - 1), "🦙", ""]
    assert "".join(pieces_of(llama3_tokenizer, ids[:-1])) == "\ufffd"


def test_a_continuation_keeps_its_leading_space(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(sentencepiece_json("legacy"), encoding="utf-8")
    tokenizer = Tokenizer.from_hf(tmp_path)
    ids = tokenizer.encode("world")
    detokenizer = IncrementalDetokenizer(tokenizer, continues=True)
    assert "".join(map(detokenizer.push, ids)) == " world"
    assert "".join(pieces_of(tokenizer, ids)) == "world"


def test_a_control_token_with_a_meaning_is_shown_though_others_are_not(llama3_tokenizer: Tokenizer) -> None:
    tag = llama3_tokenizer.control_id("<|python_tag|>")
    ids = [tag, *llama3_tokenizer.encode("1 + 1"), llama3_tokenizer.control_id("<|eot_id|>")]
    detokenizer = IncrementalDetokenizer(llama3_tokenizer, shown={tag})
    assert "".join(map(detokenizer.push, ids)) == "<|python_tag|>1 + 1"
    assert "".join(pieces_of(llama3_tokenizer, ids)) == "1 + 1"
