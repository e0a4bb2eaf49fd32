from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sampling.history import History
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.processors import edit_logits
from corral.engine.sampling.sampler import Row
from tests.engine.reference_sampling import edit
from tests.engine.sampling.bitmasks import bits_of

VOCAB_SIZE = 70

token_ids = st.integers(0, VOCAB_SIZE - 1)
texts = st.lists(token_ids, max_size=15)
penalties = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.5]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-100.0, 0.3, 100.0]), max_size=3),
)
masks = st.none() | st.lists(token_ids, unique=True)
edits = st.tuples(penalties, texts, texts, texts, st.frozensets(token_ids, max_size=3), masks)


@given(st.lists(edits, min_size=1, max_size=4), st.integers(0, 1000))
def test_the_scores_of_each_row_are_those_of_the_definition(drawn: list[Any], seed: int) -> None:
    logits = torch.randn(len(drawn), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)).bfloat16()
    rows, expected = [], []
    for values, (params, prompt, output, drafts, banned, allowed) in zip(logits, drawn, strict=True):
        history = History(params, prompt)
        for token_id in output:
            history.push(token_id)
        bits = None if allowed is None else bits_of(allowed, VOCAB_SIZE)
        rows.append(Row(params, history, tuple(drafts), 0, 0, banned, bits))
        expected.append(edit(values, params, prompt, output + drafts, banned, allowed))
    kept = logits.clone()
    np.testing.assert_array_equal(edit_logits(logits, rows).numpy(), np.array(expected, dtype=np.float32))
    np.testing.assert_array_equal(edit_logits(logits, rows).numpy(), np.array(expected, dtype=np.float32))
    assert torch.equal(logits, kept)


@given(texts, texts, texts)
def test_a_fork_of_a_history_grows_on_its_own(prompt: list[int], first: list[int], second: list[int]) -> None:
    def counts(history: History, drafts: list[int]) -> dict[int, float]:
        ids, numbers = history.counts(drafts)
        assert len(set(ids.tolist())) == len(ids)
        return dict(zip(ids.tolist(), numbers.tolist(), strict=True))

    history = History(SamplingParams(repetition_penalty=1.1), prompt)
    for token_id in first:
        history.push(token_id)
    fork = history.fork()
    for token_id in second:
        fork.push(token_id)
    assert counts(history, []) == dict.fromkeys(prompt, 0) | Counter(first)
    assert counts(fork, []) == dict.fromkeys(prompt, 0) | Counter(first + second)
    assert counts(history, second) == counts(fork, [])


def test_a_history_keeps_nothing_that_no_penalty_asks_for() -> None:
    none = History(SamplingParams(), [1, 2])
    none.push(3)
    output_alone = History(SamplingParams(presence_penalty=1.0), [1, 2])
    output_alone.push(3)
    assert none.counts()[0].tolist() == []
    assert output_alone.counts()[0].tolist() == [3]
