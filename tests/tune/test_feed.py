"""Which rows come in which step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item
from corral.tune.feed import Feed, FeedOptions, Position
from corral.tune.packing import pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def items_of(lengths: list[int]) -> list[Item]:
    """Documents that are known by their first token."""
    return [
        Example(np.full(length, number, dtype=np.int32), np.arange(length) > 0)
        for number, length in enumerate(lengths)
    ]


def numbers(microbatch: tuple[Item, ...]) -> list[int]:
    return [int(item.tokens[0]) for item in microbatch if isinstance(item, Example)]


def feed_of(lengths: list[int], rank: int = 0, ranks: int = 1, smallest: int = 1, **options: object) -> Feed:
    fields = {"batch_size": 2, "accumulation": 2, "max_length": 40} | options
    return Feed(
        items_of(lengths),
        lengths,
        FeedOptions(**fields),  # type: ignore[arg-type]
        rank=rank,
        ranks=ranks,
        smallest_batch=smallest,
    )


def epoch_of(feed: Feed, epoch: int = 0) -> list[list[int]]:
    """The rows of each microbatch of an epoch."""
    steps = feed.steps(Position(epoch))
    return [
        numbers(microbatch)
        for _ in range(feed.steps_of(epoch))
        for microbatch, counted in zip(*_parts(next(steps)), strict=True)
        if counted
    ]


def _parts(step: object) -> tuple[tuple[tuple[Item, ...], ...], tuple[bool, ...]]:
    return step.microbatches, step.counted  # type: ignore[attr-defined]


@given(LENGTHS, st.integers(1, 60))
def test_packing_takes_each_document_once_and_fills_no_row_beyond_its_capacity(
    lengths: list[int], capacity: int
) -> None:
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity or len(row) == 1 for row in rows)


def test_packing_fits_best() -> None:
    assert pack([6, 5, 4, 5, 3], 10) == [[0, 2], [1, 3], [4]]


@given(LENGTHS, st.booleans(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_an_epoch_has_each_row_once_over_all_ranks(
    lengths: list[int], packing: bool, ranks: int, batch_size: int, accumulation: int
) -> None:
    options = {"packing": packing, "batch_size": batch_size, "accumulation": accumulation}
    feeds = [feed_of(lengths, rank, ranks, **options) for rank in range(ranks)]
    assert len({feed.steps_per_epoch for feed in feeds}) == 1
    seen = [number for feed in feeds for microbatch in epoch_of(feed) for number in microbatch]
    assert sorted(seen) == list(range(len(lengths)))


@given(LENGTHS, st.integers(2, 4))
def test_ranks_together_take_the_steps_that_one_takes_alone(lengths: list[int], ranks: int) -> None:
    alone = feed_of(lengths, accumulation=2 * ranks)
    shared = [feed_of(lengths, rank, ranks, accumulation=2) for rank in range(ranks)]
    streams = [feed.steps() for feed in shared]
    steps = alone.steps()
    for _ in range(alone.steps_per_epoch + 1):  # into the next epoch
        whole = sorted(n for microbatch in next(steps).microbatches for n in numbers(microbatch))
        parts = []
        turns = set()
        for stream in streams:
            step = next(stream)
            turns.add(len(step.microbatches))
            for microbatch, counted in zip(step.microbatches, step.counted, strict=True):
                parts += numbers(microbatch) if counted else []
        assert sorted(parts) == whole
        assert len(turns) == 1, "all ranks run the same number of microbatches, or they would wait for ever"


def test_each_epoch_has_an_order_of_its_own_and_the_same_one_again_for_the_same_seed() -> None:
    lengths = [5] * 30
    one, again, other = feed_of(lengths), feed_of(lengths), feed_of(lengths, seed=1)
    assert epoch_of(one) == epoch_of(again)
    assert epoch_of(one) != epoch_of(one, 1)
    assert epoch_of(one) != epoch_of(other)
    assert epoch_of(feed_of(lengths, shuffle=False)) == [[i, i + 1] for i in range(0, 30, 2)]


@pytest.mark.parametrize("packing", [False, True])
def test_a_feed_goes_on_from_any_position(packing: bool) -> None:
    lengths = [3 + i % 11 for i in range(37)]
    whole = feed_of(lengths, packing=packing).steps()
    steps = [next(whole) for _ in range(25)]
    for start in (0, 1, 7, 19):
        resumed = feed_of(lengths, packing=packing).steps(steps[start].after)
        for expected in steps[start + 1 :]:
            step = next(resumed)
            assert [numbers(m) for m in step.microbatches] == [numbers(m) for m in expected.microbatches]
            assert (step.after, step.progress) == (expected.after, expected.progress)


def test_items_that_are_compared_are_never_left_alone() -> None:
    feed = feed_of([5] * 5, smallest=2)
    assert min(len(microbatch) for microbatch in epoch_of(feed)) == 2
    with pytest.raises(TuneError, match="has 1 rows to train on; it needs at least 2"):
        feed_of([5], smallest=2)


def test_progress_is_in_epochs() -> None:
    steps = feed_of([5] * 8).steps()
    assert [next(steps).progress for _ in range(4)] == [0.5, 1.0, 1.5, 2.0]
