"""Windows over a text: which tokens count, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import RequestError
from corral.evals.errors import EvalError
from corral.evals.windows import WindowOptions, cut, windows_of
from corral.text.tokenizer import Tokenizer
from tests.evals.models import ids_of, write_model

lengths = st.integers(0, 300)
contexts = st.integers(2, 70)


def counted(length: int, context: int, stride: int, has_bos: bool) -> list[int]:
    """The tokens of the text that count, window after window."""
    return [
        start + offset - has_bos
        for start, end, first in cut(length, context, stride, has_bos=has_bos)
        for offset in range(first, end - start + has_bos)
    ]


@given(lengths, contexts, st.data(), st.booleans())
def test_a_token_counts_at_most_once_and_the_rest_of_the_text_is_whole(
    length: int, context: int, data: st.DataObject, has_bos: bool
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    places = counted(length, context, stride, has_bos)
    assert places == list(range(context - stride - has_bos, length))


@given(lengths, contexts)
def test_windows_that_do_not_overlap_count_all_but_their_first_tokens(length: int, context: int) -> None:
    firsts = range(0, length, context)
    assert counted(length, context, context, False) == [i for i in range(length) if i not in firsts]


@given(lengths, contexts)
def test_after_a_begin_of_text_token_every_token_counts(length: int, context: int) -> None:
    assert counted(length, context, context, True) == list(range(length))


@given(lengths, contexts, st.data(), st.booleans())
def test_a_counted_token_has_enough_before_it_and_no_window_is_too_long(
    length: int, context: int, data: st.DataObject, has_bos: bool
) -> None:
    stride = data.draw(st.integers(1, context))
    for start, end, first in cut(length, context, stride, has_bos=has_bos):
        assert 0 <= start < end <= length
        assert first == max(1, context - stride)
        assert first < end - start + has_bos <= context


@pytest.fixture(scope="module", params=[False, True], ids=["byte-level", "with <s>"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_hf(write_model(tmp_path_factory.mktemp("model"), with_bos=request.param))


def test_windows_hold_the_tokens_of_one_text_after_the_token_that_begins_it(tokenizer: Tokenizer) -> None:
    texts = ["hello world, hello again", "", "the world is wide"]
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    windows = windows_of(texts, tokenizer, 1000, 1000)
    assert [window.tokens for window in windows] == [
        bos + tokenizer.encode(text, first=True) for text in texts if text
    ]
    for window in windows:
        assert len(window) == len(window.tokens)
        assert window.counted == window.tokens[1:]
        assert window.num_counted == len(window.counted)


def test_the_bytes_are_those_of_the_tokens_that_count(tokenizer: Tokenizer) -> None:
    text = "hello Größe, 猫 and the lazy dog"
    ids = tokenizer.encode(text, first=True)
    (window,) = windows_of([text], tokenizer, 1000, 1000)
    # The space before "hello" is of the SentencePiece vocabulary, not of the text.
    whole = len(text.encode())
    assert window.num_bytes == (whole if tokenizer.adds_bos else whole - len(tokenizer.token_bytes(ids[0])))
    windows = windows_of([text], tokenizer, 8, 3)
    assert len(windows) > 3
    of_each = [sum(len(tokenizer.token_bytes(i)) for i in window.counted) for window in windows]
    assert [window.num_bytes for window in windows] == of_each


def test_a_limit_is_for_all_texts_together(tokenizer: Tokenizer) -> None:
    texts = ["hello world"] * 9
    each = len(tokenizer.encode(texts[0], first=True))
    windows = windows_of(texts, tokenizer, 1000, 1000, 2 * each + 2)
    assert [window.end - window.start for window in windows] == [each, each, 2]


def test_the_name_of_a_control_token_is_ordinary_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_hf(write_model(tmp_path, with_bos=True))
    (window,) = windows_of(["<s>hello</s>"], tokenizer, 1000, 1000)
    assert window.tokens.count(1) == 1
    assert not {1, 2} & set(window.counted)
    assert tokenizer.decode(window.counted) == "<s>hello</s>"
    assert tokenizer.encode("hello", first=True) == ids_of(tmp_path, "hello")


def test_a_text_without_a_token_that_counts_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(EvalError, match="the text has 0 tokens"):
        windows_of([""], tokenizer, 8, 8)
    with pytest.raises(EvalError, match=r"no text is long enough: with context 64 and stride 8 .* 56 stand"):
        windows_of(["hello world, hello"], tokenizer, 64, 8)


def test_one_token_is_too_few(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_hf(write_model(tmp_path))
    with pytest.raises(EvalError, match="the text has 1 token; two are the least"):
        windows_of(["!"], tokenizer, 8, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context": 1}, "context is 1; it must be at least 2"),
        ({"context": 2.5}, "context is 2.5; it must be a whole number"),
        ({"stride": 0}, "stride is 0; it must be at least 1"),
        ({"tokens": 1}, "tokens is 1; it must be at least 2"),
        ({"context": 8, "stride": 9}, "stride is 9, but context is 8"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        WindowOptions(**options)


def test_the_context_is_the_models_where_that_is_short() -> None:
    assert WindowOptions().fitted(131072) == (1024, 1024)
    assert WindowOptions(stride=8).fitted(64) == (64, 8)
    with pytest.raises(RequestError, match="stride is 100, but context is 64"):
        WindowOptions(stride=100).fitted(64)
