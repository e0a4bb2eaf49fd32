from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.engine.sampling.random import choice_key, uniform
from corral.errors import RequestError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 2.5),
        ("min_p", 1.5),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("logit_bias", [5]),
        ("logit_bias", {-1: 0.5}),
        ("logit_bias", {5: float("inf")}),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("stop", ("a", "")),
        ("stop", ["x"] * 65),
        ("stop_token_ids", (-1,)),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("skip_special_tokens", "yes"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, more than max_tokens"),
        ({"n": 2, "temperature": 0.0}, "n is 2 with temperature 0"),
        ({"ignore_eos": True, "structured_outputs": StructuredOutputsParams(regex="a")}, "ignore_eos"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        SamplingParams(**values)


@given(st.integers(0, 2**64 - 1), st.integers(0, 127), st.integers(0, 2**20))
def test_the_same_key_and_position_give_the_same_number(seed: int, choice: int, position: int) -> None:
    key = choice_key(seed, choice)
    drawn = uniform(key, position)
    assert drawn == uniform(key, position)
    assert 0.0 <= drawn < 1.0
    assert drawn != uniform(key, position + 1)
    assert drawn != uniform(key ^ 1, position)
    assert drawn != uniform(choice_key(seed, choice + 1), position)
    assert drawn == (int(np.random.Philox(key=key, counter=position).random_raw()) >> 11) / 2**53
