"""What is cut where, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.scale.errors import ParallelError
from corral.scale.sums import buckets
from corral.scale.tensor_parallel import require_divisible
from tests.random_models import SMALL


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([torch.float32, torch.bfloat16]))),
    st.integers(1, 60),
)
def test_buckets_hold_every_tensor_once_in_bounded_groups_of_a_type(
    shapes: list[tuple[int, torch.dtype]], largest: int
) -> None:
    tensors = [torch.empty(size, dtype=dtype) for size, dtype in shapes]
    found = list(buckets(tensors, largest))
    for bucket in found:
        assert len({tensor.dtype for tensor in bucket}) == 1
        assert len(bucket) == 1 or sum(tensor.numel() for tensor in bucket) <= largest
    for dtype in (torch.float32, torch.bfloat16):
        order = [id(tensor) for bucket in found for tensor in bucket if tensor.dtype == dtype]
        assert order == [id(tensor) for tensor in tensors if tensor.dtype == dtype]


@pytest.mark.parametrize(
    ("processes", "changed", "words"),
    [
        (3, {}, "parallel.tensor is 3, but the model has 4 attention heads"),
        (
            4,
            {},
            "the model has 2 key-value heads, which 4 processes cannot share evenly; choose a divisor of 2",
        ),
        (2, {"intermediate_size": 97}, "97 columns of the feed-forward network"),
    ],
)
def test_what_cannot_be_shared_evenly_is_refused(processes: int, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ParallelError, match=words):
        require_divisible(replace(SMALL, **changed), processes)


def test_what_divides_is_accepted() -> None:
    require_divisible(SMALL, 2)
    require_divisible(SMALL, 1)
