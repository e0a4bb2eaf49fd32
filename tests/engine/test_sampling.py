from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sampling import SamplingParams, candidates, penalize_repetition, sample, uniform
from corral.errors import RequestError

LOGITS = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3


def transformers_distribution(logits: torch.Tensor, seen: list[int], params: SamplingParams) -> torch.Tensor:
    """Probabilities after transformers' own processors, in the order that its `generate` applies them."""
    from transformers import generation as g

    processors: list[Any] = [g.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)]
    processors.append(g.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(g.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(g.TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(g.MinPLogitsWarper(params.min_p))
    scores = logits[None].clone()
    for processor in processors:
        scores = processor(torch.tensor([seen]), scores)
    return scores[0].softmax(-1)


def distribution(logits: torch.Tensor, seen: list[int], params: SamplingParams) -> torch.Tensor:
    ids, probabilities = candidates(penalize_repetition(logits, seen, params.repetition_penalty), params)
    return torch.zeros_like(logits).index_copy(0, ids, probabilities)


@given(
    st.floats(0.1, 3.0),
    st.integers(0, 250),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.9),
    st.floats(0.5, 2.0),
    st.lists(st.integers(0, 199), min_size=1, max_size=20),
    st.integers(0, 1000),
)
def test_the_distribution_equals_that_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seen: list[int], seed: int
) -> None:
    params = SamplingParams(temperature, top_k, top_p, min_p, penalty)
    logits = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 3
    expected = transformers_distribution(logits, seen, params)
    ours = distribution(logits, seen, params)
    # A token whose cumulative probability meets top_p to the last bit may fall on either side.
    assert (ours - expected).abs().sum() < 1e-4 or _on_the_edge(logits, seen, params)


def _on_the_edge(logits: torch.Tensor, seen: list[int], params: SamplingParams) -> bool:
    near = [
        SamplingParams(
            params.temperature,
            params.top_k,
            min(1.0, params.top_p * f),
            params.min_p * f,
            params.repetition_penalty,
        )
        for f in (1 - 1e-5, 1 + 1e-5)
    ]
    kept = [int((distribution(logits, seen, p) > 0).sum()) for p in near]
    return kept[0] != kept[1]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    params = SamplingParams(temperature=1.0, top_k=8)
    ids, probabilities = candidates(LOGITS, params)
    draws = 4000
    counts = Counter(sample(LOGITS, params, [], 7, position) for position in range(draws))
    assert set(counts) <= set(ids.tolist())
    for token, probability in zip(ids.tolist(), probabilities.tolist(), strict=True):
        deviation = (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - draws * probability) < 5 * deviation


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_the_same_seed_and_position_give_the_same_number(seed: int, position: int) -> None:
    assert uniform(seed, position) == uniform(seed, position)
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) != uniform(seed, position + 1)
    assert uniform(seed, position) != uniform(seed ^ 1, position)


def test_greedy_takes_the_best_after_the_penalty() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert sample(logits, SamplingParams(temperature=0.0), [0], 0, 0) == 0
    assert sample(logits, SamplingParams(temperature=0.0, repetition_penalty=1.2), [0], 0, 0) == 1


def test_a_token_is_always_left_to_draw() -> None:
    params = SamplingParams(top_k=1, top_p=1e-6, min_p=1.0)
    assert sample(LOGITS, params, [], 0, 0) == int(LOGITS.argmax())


def test_the_position_does_not_depend_on_the_vocabulary_order_of_equal_scores() -> None:
    ids, _ = candidates(torch.zeros(10), SamplingParams(top_k=4))
    assert ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("seed", -1),
        ("seed", 2**64),
        ("stop_token_ids", (-1,)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})
