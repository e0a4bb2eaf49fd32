"""The definition of sampling against the classes of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import generation as hf

from corral.engine.sampling.params import SamplingParams
from tests.engine.reference_sampling import candidates, edit

VOCAB_SIZE = 200

filters = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 1, 5, 40, 250]),
    top_p=st.sampled_from([1.0]) | st.floats(0.05, 0.99),
    min_p=st.sampled_from([0.0]) | st.floats(0.0, 0.9),
    typical_p=st.sampled_from([1.0]) | st.floats(0.05, 0.99),
)


def logits_of(seed: int) -> Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def transformers_distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities after transformers' own warpers, in the order that its `generate` applies them."""
    warpers: list[Any] = [hf.TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        warpers.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(hf.MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        warpers.append(hf.TypicalLogitsWarper(params.typical_p))
    scores = logits[None].clone()
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    return scores[0].softmax(-1)


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    ids, shares = candidates(logits.tolist(), params)
    probabilities = torch.zeros(VOCAB_SIZE)
    probabilities[ids] = torch.tensor(shares) / sum(shares)
    return probabilities


def on_an_edge(logits: Tensor, params: SamplingParams) -> bool:
    """Whether a filter's sum is met to the last bits, where float32 may fall on the other side."""
    kept = {
        tuple(
            candidates(
                logits.tolist(),
                replace(
                    params,
                    top_p=min(1.0, params.top_p * factor),
                    min_p=min(1.0, params.min_p * factor),
                    typical_p=min(1.0, params.typical_p * factor),
                ),
            )[0]
        )
        for factor in (1 - 1e-5, 1 + 1e-5)
        if params.top_p * factor != 1.0
    }
    return len(kept) > 1


@given(filters, st.integers(0, 1000))
def test_the_candidates_and_their_probabilities_are_those_of_transformers(
    params: SamplingParams, seed: int
) -> None:
    logits = logits_of(seed)
    expected, ours = transformers_distribution(logits, params), distribution(logits, params)
    assert torch.allclose(ours, expected, atol=1e-5) or on_an_edge(logits, params)


@given(st.floats(0.3, 3.0), st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1), st.integers(0, 1000))
def test_the_repetition_penalty_is_that_of_transformers(penalty: float, seen: list[int], seed: int) -> None:
    logits = logits_of(seed)
    processor: Any = hf.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([seen]), logits[None])[0]
    half = len(seen) // 2
    ours = edit(logits, SamplingParams(repetition_penalty=penalty), seen[:half], seen[half:])
    np.testing.assert_array_equal(np.array(ours, dtype=np.float32), expected.numpy())


def test_frequency_and_presence_penalties_count_the_output_alone() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    scores = edit(torch.zeros(4), params, [0, 0, 1], [1, 2, 2, 2])
    assert scores == [0.0, -0.75, -1.75, 0.0]


def test_a_bias_of_100_forces_and_one_of_minus_100_bans() -> None:
    logits = torch.tensor([20.0, -20.0, 0.0])
    ids, shares = candidates(
        edit(logits, SamplingParams(logit_bias={0: -100, 1: 100}), [], []), SamplingParams()
    )
    assert ids == [1, 2, 0]
    assert shares[1] / sum(shares) < 1e-30


@pytest.mark.parametrize("params", [SamplingParams(top_k=4), SamplingParams(top_p=0.4)])
def test_equal_scores_are_ordered_by_id(params: SamplingParams) -> None:
    assert candidates([0.0] * 10, params)[0] == [0, 1, 2, 3]
