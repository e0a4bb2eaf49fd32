from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from corral.engine.sampling import sampler
from corral.engine.sampling.choice import choose_from_row
from corral.engine.sampling.history import History
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.sampler import Row, sample_rows
from tests.engine.reference_sampling import candidates, sample
from tests.engine.sampling.bitmasks import bits_of

filters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-9, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 50, 600, 10**6]),
    top_p=st.sampled_from([1.0, 0.05, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1e-6]),
    typical_p=st.sampled_from([1.0, 1.0, 0.2, 0.95]),
)
penalties = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.7, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.5, -1.5]),
        "presence_penalty": st.sampled_from([0.0, 1.0]),
        "logit_bias": st.dictionaries(st.integers(0, 6), st.sampled_from([-100.0, 0.3, 100.0]), max_size=3),
    }
)


def logits_of(seed: int, vocab_size: int, spread: float, step: float) -> Tensor:
    """Random logits; rounded to a step, many of them are equal."""
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    return (logits / step).round() * step if step else logits


def plain_row(params: SamplingParams, position: int = 0, key: int = 7) -> Row:
    return Row(params, History(params, []), (), key, position)


@st.composite
def whole_rows(draw: st.DrawFn) -> list[tuple[Tensor, SamplingParams]]:
    """Rows that a window decides, rows that only a wide one or the whole row does, and flat ones."""
    vocab_size = draw(st.sampled_from([7, 300, 1500, 5000]))
    shapes = st.tuples(
        st.integers(0, 10**6),
        st.just(vocab_size),
        st.sampled_from([0.0, 0.1, 1.0, 4.0]),
        st.sampled_from([0.0, 0.0, 0.5]),
    )
    return draw(
        st.lists(st.tuples(shapes.map(lambda shape: logits_of(*shape)), filters), min_size=1, max_size=3)
    )


@given(
    whole_rows(),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**5),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_tokens_are_those_of_the_definition(
    drawn: list[tuple[Tensor, SamplingParams]], key: int, position: int, dtype: torch.dtype
) -> None:
    logits = torch.stack([row for row, _ in drawn]).to(dtype)
    sampled = sample_rows(logits, [plain_row(params, position, key) for _, params in drawn])
    expected = [
        sample(row, params, [], [], key, position) for row, (_, params) in zip(logits, drawn, strict=True)
    ]
    assert [token.token_id for token in sampled] == expected


@given(
    filters,
    penalties,
    st.lists(st.integers(0, 99), max_size=20),
    st.lists(st.integers(0, 99), max_size=20),
    st.lists(st.integers(0, 99), max_size=4),
    st.none() | st.lists(st.integers(0, 99), min_size=1, unique=True),
    st.frozensets(st.integers(0, 99), max_size=3),
    st.integers(0, 1000),
)
def test_masks_bias_penalties_and_drafts_are_those_of_the_definition(
    params: SamplingParams,
    edits: dict[str, object],
    prompt: list[int],
    output: list[int],
    drafts: list[int],
    allowed: list[int] | None,
    banned: frozenset[int],
    seed: int,
) -> None:
    params = replace(params, **edits)  # type: ignore[arg-type]
    logits = logits_of(seed, 100, 3.0, 0.0)
    history = History(params, prompt)
    for token_id in output:
        history.push(token_id)
    bits = None if allowed is None else bits_of(allowed, 100)
    row = Row(params, history, tuple(drafts), seed, 50, banned, bits)
    [got] = sample_rows(logits[None], [row])
    if allowed is not None and banned.issuperset(allowed):
        assert got.token_id == -1
        return
    expected = sample(logits, params, prompt, output + drafts, seed, 50, banned=banned, allowed=allowed)
    assert got.token_id == expected
    assert sample_rows(logits[None], [row]) == [got]  # the drafts have not become part of the history


@given(st.data())
def test_a_row_alone_gives_the_same_token_and_log_probabilities_as_in_company(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    logits = torch.stack([logits_of(seed, 2000, 2.0, 0.0) for seed in range(count)]).bfloat16()
    params = [data.draw(filters) for _ in range(count)]
    rows = [replace(plain_row(p, i), logprobs=i % 4 or None) for i, p in enumerate(params)]
    together = sample_rows(logits, rows)
    assert [sample_rows(logits[i : i + 1], [rows[i]])[0] for i in range(count)] == together
    backwards = sample_rows(logits.flip(0), rows[::-1])
    assert backwards[::-1] == together


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(top_k=50),
        SamplingParams(min_p=0.05),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=0.7, top_p=0.9, typical_p=0.9),
    ],
)
def test_a_window_decides_usual_rows(params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(scores: NDArray[np.float32], params: SamplingParams, draw: float) -> int:
        calls.append(1)
        return choose_from_row(scores, params, draw)

    monkeypatch.setattr(sampler, "choose_from_row", counting)
    logits = torch.stack([logits_of(seed, 32000, 4.0, 0.0) for seed in range(50)])
    sample_rows(logits, [plain_row(params, position) for position in range(50)])
    assert len(calls) <= 2


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    params = SamplingParams(temperature=1.3, top_k=30, top_p=0.95)
    logits = logits_of(0, 200, 3.0, 0.0)
    draws = 6000
    sampled = sample_rows(
        logits.expand(draws, -1), [plain_row(params, position) for position in range(draws)]
    )
    counts = Counter(token.token_id for token in sampled)
    ids, shares = candidates(logits.tolist(), params)
    assert set(counts) <= set(ids)
    for token_id, share in zip(ids, shares, strict=True):
        probability = share / sum(shares)
        deviation = (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[token_id] - draws * probability) < 5 * deviation


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_p=0.9)]
)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_that_is_not_finite_fails_alone(params: SamplingParams, broken: float, masked: bool) -> None:
    logits = torch.stack([logits_of(seed, 500, 2.0, 0.0) for seed in range(3)])
    rows = [replace(plain_row(params, i), logprobs=2) for i in range(3)]
    if masked:  # the broken value itself is ruled out
        rows[1] = replace(rows[1], allowed=bits_of([5, 6], 500))
    whole = sample_rows(logits, rows)
    logits[1, 300] = broken
    sampled = sample_rows(logits, rows)
    assert sampled[1].token_id == -1
    assert sampled[1].logprobs is None
    assert "not finite" in (sampled[1].error or "")
    assert [sampled[0], sampled[2]] == [whole[0], whole[2]]


def test_a_row_without_any_token_left_says_so() -> None:
    params = SamplingParams(temperature=0.0)
    row = replace(plain_row(params), allowed=bits_of([3], 40), banned=frozenset([3]))
    [sampled] = sample_rows(torch.zeros(1, 40), [row])
    assert sampled.token_id == -1
    assert "no token may come" in (sampled.error or "")


def test_the_best_of_equal_logits_is_the_lowest_id() -> None:
    logits = torch.zeros(2, 5000, dtype=torch.bfloat16)
    logits[1, [70, 3000]] = 1.0
    rows = [plain_row(SamplingParams(temperature=0.0))] * 2
    assert [token.token_id for token in sample_rows(logits, rows)] == [0, 70]


def test_the_logits_are_left_as_they_are() -> None:
    logits = logits_of(1, 300, 2.0, 0.0)[None]
    kept = logits.clone()
    params = SamplingParams(repetition_penalty=1.5, logit_bias={3: 5.0})
    row = Row(params, History(params, [1, 2]), (4,), 0, 3, frozenset([9]), bits_of(list(range(50)), 300), 5)
    sample_rows(logits, [row])
    assert torch.equal(logits, kept)


def test_no_rows_give_nothing() -> None:
    assert sample_rows(torch.zeros(0, 100), []) == []
