from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.sampling.history import History
from corral.engine.sampling.logprobs import next_token_logprobs, score_rows
from corral.engine.sampling.params import SamplingParams
from corral.engine.sampling.sampler import Row, sample_rows


@given(
    st.integers(1, 5),
    st.sampled_from([8, 1000, 5000]),
    st.integers(0, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_log_probabilities_and_ranks_are_those_of_the_definition(
    count: int, vocab_size: int, top: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, vocab_size, generator=generator) * 3).to(dtype)  # bfloat16: equal ones
    chosen = torch.randint(vocab_size, (count,), generator=generator).tolist()
    for row, token_id, scored in zip(logits, chosen, score_rows(logits, chosen, top), strict=True):
        expected = row.double().log_softmax(0)
        ids = row.float().sort(descending=True, stable=True).indices[:top].tolist()
        assert [token.token_id for token in scored.top] == ids
        for token in (scored.chosen, *scored.top):
            assert token.logprob == pytest.approx(float(expected[token.token_id]), abs=1e-5)
            assert token.rank == 1 + int((row > row[token.token_id]).sum())
        assert scored.chosen.token_id == token_id


@given(st.integers(0, 20), st.lists(st.integers(0, 299), max_size=5), st.integers(0, 1000))
def test_next_tokens_are_the_best_and_then_those_asked_for(top: int, asked: list[int], seed: int) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    tokens = next_token_logprobs(logits, top, asked)
    best = score_rows(logits[None], [0], top)[0].top
    others = [i for i in dict.fromkeys(asked) if i not in {token.token_id for token in best}]
    assert tokens[:top] == best
    assert tokens[top:] == tuple(score_rows(logits[None], [i], 0)[0].chosen for i in others)


def test_the_log_probabilities_given_are_the_models_own() -> None:
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=0.5, top_k=3, repetition_penalty=2.0, logit_bias={7: 100.0})
    history = History(params, [1, 2, 3])
    rows = [Row(params, history, (), 0, 3, logprobs=count) for count in (2, 0)]
    for row_logits, row, sampled in zip(logits, rows, sample_rows(logits, rows), strict=True):
        assert sampled.token_id == 7
        assert sampled.logprobs == score_rows(row_logits[None], [7], row.logprobs or 0)[0]
        assert sampled.logprobs is not None
        assert len(sampled.logprobs.top) == row.logprobs


def test_a_row_gives_the_same_alone_and_among_others() -> None:
    logits = torch.randn(70, 49152, generator=torch.Generator().manual_seed(0)) * 3
    chosen = list(range(70))
    together = score_rows(logits, chosen, 3)
    assert [score_rows(logits[i : i + 1], [i], 3)[0] for i in chosen] == together
