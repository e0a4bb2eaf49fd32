"""Cutting, counting and packing, whatever the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.tune.config import DataConfig
from corral.tune.data.limits import cut, is_trained, is_undecided, longest_document
from corral.tune.data.prepare import Prepared, prepare
from corral.tune.examples import Example, Item, Pair, Rated
from corral.tune.packing import pack
from tests.tune.data.conftest import PromptFormat
from tests.tune.data.items import as_example, trained_spans

Make = Callable[..., Prepared]


@st.composite
def examples(draw: st.DrawFn, prompt: list[int] | None = None) -> Example:
    """A document; behind a prompt, if there is one, everything is trained."""
    tail = draw(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=30))
    head = prompt or []
    tokens = np.asarray([*head, *(token for token, _ in tail)], dtype=np.int32)
    trained = np.asarray([*(False for _ in head), *(prompt is not None or mask for _, mask in tail)])
    trained[0] = False
    return Example(tokens, trained)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    prompt = draw(st.lists(st.integers(0, 9), max_size=20))
    return Pair(draw(examples(prompt)), draw(examples(prompt)))


@st.composite
def ratings(draw: st.DrawFn) -> Rated:
    prompt, completion = (draw(st.lists(st.integers(0, 9), min_size=n, max_size=20)) for n in (0, 1))
    return Rated(
        np.asarray(prompt, dtype=np.int32), np.asarray(completion, dtype=np.int32), draw(st.booleans())
    )


def documents(item: Item) -> list[Example]:
    if isinstance(item, Pair):
        return [item.chosen, item.rejected]
    return [item.example if isinstance(item, Rated) and len(item) else item]  # type: ignore[list-item]


@given(item=st.one_of(examples(), pairs(), ratings()), limit=st.integers(2, 40))
def test_what_is_cut_is_a_beginning_with_all_that_can_be_learnt(item: Item, limit: int) -> None:
    short = cut(item, limit)
    assert longest_document(short) <= limit
    assert len(short) <= len(item)
    if not len(short):
        return
    for before, after in zip(documents(item), documents(short), strict=True):
        kept = len(after)
        assert np.array_equal(after.tokens, before.tokens[:kept])
        assert np.array_equal(after.trained, before.trained[:kept])
        assert not before.trained[kept:limit].any()
    if is_trained(short):
        assert is_trained(item)
    if longest_document(item) <= limit:
        assert len(short) == len(item)


@given(pair=pairs())
def test_a_preference_is_undecided_where_its_documents_are_equal(pair: Pair) -> None:
    same = pair.chosen.tokens.tolist() == pair.rejected.tokens.tolist()
    assert is_undecided(pair) == same


@given(lengths=st.lists(st.integers(1, 50), max_size=200), capacity=st.integers(1, 60))
def test_packing_loses_nothing_and_fills_no_row_too_far(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= capacity
    # No two rows could have been one, where best fit had the choice: at most one is no more than half full.
    assert sum(2 * sum(lengths[index] for index in row) <= capacity for row in rows) <= 1


def dialog(words: int, answer: int = 1) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "word " * words},
            {"role": "assistant", "content": "so" + " so" * (answer - 1)},
        ]
    }


def test_cut_rows_and_lost_tokens_are_counted(made_of: Make, chatml: PromptFormat) -> None:
    rows = [dialog(2), dialog(2, 60), dialog(200), dialog(2, 61)]
    prepared, whole = made_of(rows, max_length=64), made_of(rows)
    source = prepared.report.sources[0]
    lengths = whole.train.lengths
    assert (source.rows, source.items, source.cut) == (4, 3, 2)
    assert source.lost == lengths[1] + lengths[3] - 2 * 64
    assert (source.untrained, source.cut_away, source.dropped) == (1, 1, 0)
    assert prepared.train.lengths.tolist() == [lengths[0], 64, 64]
    said = f"cut at 64 tokens: 2 rows; {source.lost} tokens went"
    assert any(line.endswith(said) for line in prepared.report.lines())
    (span,) = trained_spans(as_example(prepared.train[1]), chatml.tokenizer)
    assert span.startswith("so so")
    assert not span.endswith(chatml.end)


def test_a_row_that_is_just_as_long_as_allowed_is_whole(made_of: Make) -> None:
    length = int(made_of([dialog(5, 9)]).train.lengths[0])
    for overlong in ("truncate", "drop", "error"):
        prepared = made_of([dialog(5, 9)], max_length=length, overlong=overlong)
        assert prepared.train.lengths.tolist() == [length]
        assert prepared.report.sources[0].cut == prepared.report.sources[0].dropped == 0


def test_long_rows_can_be_left_out(made_of: Make) -> None:
    prepared = made_of([dialog(2), dialog(2, 60), dialog(200)], max_length=64, overlong="drop")
    assert len(prepared.train) == 1
    assert prepared.report.sources[0].dropped == 2


def test_what_stands_behind_the_last_answer_is_left_out(made_of: Make) -> None:
    row = dialog(2)
    longer = {"messages": [*row["messages"], {"role": "user", "content": "word " * 500}]}
    prepared = made_of([row, longer], max_length=64)
    assert prepared.train.lengths[0] == prepared.train.lengths[1]
    assert prepared.report.sources[0].cut == 0


@pytest.mark.parametrize(("context", "wanted"), [(512, 512), (131_072, 2048)])
def test_the_usual_length_is_the_contexts_up_to_2048(
    context: int, wanted: int, write_rows: Callable[..., str], chatml: PromptFormat, tmp_path: Any
) -> None:
    config = DataConfig(train=write_rows([dialog(2)]))
    assert (
        prepare(config, "sft", chatml.tokenizer, chatml.renderer, context, tmp_path / "c").max_length
        == wanted
    )


def test_lengths_are_reported(made_of: Make) -> None:
    prepared = made_of([dialog(2, n) for n in (1, 2, 3, 4, 50)] + [dialog(2)])
    report = prepared.report.train
    lengths = np.sort(prepared.train.lengths)
    assert (report.min, report.median, report.max) == (lengths[0], lengths[2], lengths[-1])
    assert report.p95 == lengths[-1]
    assert report.tokens == lengths.sum()
    assert report.trained == sum(n + 1 for n in (1, 2, 3, 4, 50, 1))
    assert prepared.report.duplicates == 1
    assert "the same as an earlier one: 1 row" in prepared.report.lines()


def test_the_first_rows_of_each_source(made_of: Make) -> None:
    prepared = made_of([dialog(n) for n in range(1, 9)] + [{"broken": 1}], limit=3)
    assert len(prepared.train) == 3
    assert prepared.report.sources[0].rows == 3
