"""The same request gives the same answer, in whatever company and by whatever way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pytest

from corral.engine.config import SchedulerConfig
from corral.engine.outputs import CompletionOutput, RequestOutput
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from tests.engine.engines import run, running_engine
from tests.engine.reference_loop import generate
from tests.random_models import random_model

LENGTHS = (1, 3, 17, 40, 64, 65, 130)
TOLERANCE = 1e-4


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{length} {seed}").choices(range(2, 512), k=length)


def params(sampled: bool, seed: int = 0) -> SamplingParams:
    if not sampled:
        return SamplingParams(temperature=0.0, max_tokens=24, logprobs=3, prompt_logprobs=2)
    return SamplingParams(
        temperature=0.9,
        top_p=0.95,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        max_tokens=24,
        seed=seed,
        logprobs=3,
    )


def requests() -> list[Request]:
    return [
        Request(prompt(length), params(sampled, seed=length))
        for length in LENGTHS
        for sampled in (False, True)
    ]


def others(count: int) -> list[Request]:
    """Company of all kinds."""
    rng = random.Random(1)
    return [
        Request(
            prompt(rng.randint(1, 90), seed=i),
            SamplingParams(temperature=rng.choice((0.0, 1.0)), max_tokens=rng.randint(1, 40), seed=i),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def alone(llama31_model: Llama) -> list[RequestOutput]:
    """Each request by itself, its prompt in one piece, without a prefix cache."""
    with running_engine(llama31_model, prefix_caching=False) as engine:
        return [run(engine, [request])[0] for request in requests()]


def test_alone_it_is_what_the_plain_loop_gives(llama31_model: Llama, alone: list[RequestOutput]) -> None:
    for request, output in zip(requests(), alone, strict=True):
        plain = generate(llama31_model, request.tokens, request.params, frozenset(), 10_000)
        assert list(output.outputs[0].token_ids) == list(plain)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_chunks_change_nothing(
    llama31_model: Llama, alone: list[RequestOutput], chunk: int, caching: bool
) -> None:
    config = SchedulerConfig(max_num_batched_tokens=600, max_prefill_chunk=chunk)
    with running_engine(llama31_model, config=config, prefix_caching=caching) as engine:
        assert_same(alone, run(engine, requests()))


def test_company_changes_nothing(llama31_model: Llama, alone: list[RequestOutput]) -> None:
    with running_engine(llama31_model, num_blocks=2000) as engine:
        company = others(32)
        together = run(engine, [*company[:16], *requests(), *company[16:]])
        assert_same(alone, together[16 : 16 + len(alone)])


def test_a_warm_prefix_cache_changes_nothing(llama31_model: Llama, alone: list[RequestOutput]) -> None:
    with running_engine(llama31_model) as engine:
        assert_same(alone, run(engine, requests()))
        warm = run(engine, requests())
        assert_same(alone, warm)
        cached = [output.num_cached_tokens for output in warm]
        assert cached[-1] == 128  # whole blocks before the last token
        assert cached[-2] == 0  # a prompt that is to be scored is computed


def test_preemption_changes_nothing(llama31_model: Llama, alone: list[RequestOutput]) -> None:
    with running_engine(llama31_model, num_blocks=60, prefix_caching=False) as engine:
        assert_same(alone, run(engine, requests()))
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("draft", ["prompt_lookup", "the model itself", "another model"])
def test_guesses_change_nothing(
    llama31_model: Llama, llama31_config: LlamaConfig, alone: list[RequestOutput], draft: str
) -> None:
    models = {"the model itself": llama31_model, "another model": random_model(llama31_config, seed=7)}
    with running_engine(llama31_model, speculate=models.get(draft, draft)) as engine:
        together = run(engine, requests())
        assert_same(alone, together)
        usages = [output.outputs[0].usage for output in together]
        guessed = sum(usage.draft_tokens for usage in usages if usage)
        came_true = sum(usage.accepted_tokens for usage in usages if usage)
        assert guessed > 0
        if draft == "the model itself":
            assert came_true == guessed


def test_everything_at_once_changes_nothing(llama31_model: Llama, alone: list[RequestOutput]) -> None:
    config = SchedulerConfig(max_num_seqs=9, max_num_batched_tokens=40, max_prefill_chunk=11)
    with running_engine(
        llama31_model, num_blocks=70, config=config, speculate="prompt_lookup", max_model_len=200
    ) as engine:
        for _ in range(2):
            together = run(engine, [*requests(), *others(20), *requests()])
            assert_same(alone, together[: len(alone)])
            assert_same(alone, together[-len(alone) :])


@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
def test_a_smaller_cache_gives_much_the_same_in_any_chunks_and_company(
    llama31_model: Llama, kv_dtype: str
) -> None:
    answers = []
    for chunk in (512, 5):
        config = SchedulerConfig(max_num_batched_tokens=600, max_prefill_chunk=chunk)
        with running_engine(llama31_model, kv_dtype=kv_dtype, config=config) as engine:
            answers.append(run(engine, requests()))
            answers.append([run(engine, [request])[0] for request in requests()])
    for answer in answers[1:]:
        for one, other in zip(answers[0], answer, strict=True):
            assert_close_while_equal(one.outputs[0], other.outputs[0])


def test_several_outputs_are_those_of_their_seeds(llama31_model: Llama) -> None:
    several = SamplingParams(n=5, max_tokens=12, seed=3, logprobs=0)
    texts = []
    for num_blocks, chunk in ((400, None), (60, 3)):
        config = SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=64, max_prefill_chunk=chunk)
        with running_engine(llama31_model, num_blocks=num_blocks, config=config) as engine:
            batch = [Request(prompt(30, i), several) for i in range(3)]
            texts.append([[o.token_ids for o in output.outputs] for output in run(engine, batch)])
    assert texts[0] == texts[1]
    assert all(len(set(outputs)) == 5 for outputs in texts[0])
    with running_engine(llama31_model) as engine:
        single = SamplingParams(max_tokens=12, seed=3)
        assert run(engine, [Request(prompt(30, 0), single)])[0].outputs[0].token_ids == texts[0][0][0]


def assert_same(
    expected: Sequence[RequestOutput], got: Sequence[RequestOutput], tolerance: float = TOLERANCE
) -> None:
    """The same tokens, and log-probabilities within the tolerance."""
    assert len(expected) == len(got)
    for one, other in zip(expected, got, strict=True):
        (left,), (right,) = one.outputs, other.outputs
        assert left.token_ids == right.token_ids
        assert left.finish_reason == right.finish_reason
        assert numbers(left) == pytest.approx(numbers(right), abs=tolerance)
        assert prompt_numbers(one) == pytest.approx(prompt_numbers(other), abs=tolerance)


def assert_close_while_equal(one: CompletionOutput, other: CompletionOutput) -> None:
    """The same log-probabilities up to where the tokens part, which is where two are as good as one another.

    A number on the edge of two codes may fall on either side, and so may what follows from it.
    """
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(one.token_ids, other.token_ids, strict=True)))
    left, right = numbers(one), numbers(other)
    shared = [place for place in left.keys() & right.keys() if place[0] <= len(same)]
    assert shared
    assert [left[place] for place in shared] == pytest.approx([right[place] for place in shared], abs=1e-2)


def numbers(output: CompletionOutput) -> dict[Any, float]:
    assert output.logprobs is not None
    return {(i, token): at[token].logprob for i, at in enumerate(output.logprobs) for token in at}


def prompt_numbers(output: RequestOutput) -> dict[Any, float]:
    places = output.prompt_logprobs or ()
    return {(i, token): at[token].logprob for i, at in enumerate(places) if at for token in at}
