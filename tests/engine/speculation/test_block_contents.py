"""What is known of blocks, where no cache is needed to see it."""

from __future__ import annotations

from corral.engine.speculation.block_contents import BlockContents


def test_a_copy_of_a_block_holds_what_the_block_held_at_that_moment() -> None:
    contents = BlockContents(block_size=2)
    contents.write([1, 2, 3], 0, [7, 8])
    contents.copy([(8, 9), (9, 5)])
    contents.write([4], 3, [7, 8])
    assert contents.count([1, 2, 3, 4], [7, 8]) == 4
    assert contents.count([1, 2, 3, 4], [7, 9]) == contents.count([1, 2, 3, 4], [7, 5]) == 3


def test_a_copy_of_a_block_that_holds_nothing_holds_nothing() -> None:
    contents = BlockContents(block_size=2)
    contents.write([1, 2], 0, [7])
    contents.copy([(8, 7)])
    assert contents.count([1, 2], [7]) == 0


def test_equal_tokens_after_other_tokens_do_not_count() -> None:
    contents = BlockContents(block_size=2)
    contents.write([1, 2, 3, 4], 0, [7, 8])
    contents.write([1, 1], 0, [9])
    assert contents.count([1, 1, 3, 4], [9, 8]) == 2


def test_tokens_count_up_to_the_first_that_differs() -> None:
    contents = BlockContents(block_size=4)
    contents.write([1, 2, 3, 4, 5], 0, [7, 8])
    assert contents.count([1, 2, 9, 4, 5], [7, 8]) == 2
    contents.write([9, 4], 2, [7, 8])
    assert contents.count([1, 2, 9, 4, 5], [7, 8]) == 4, "what follows is of another text"
    assert contents.count([1, 2, 9], [7]) == 3
