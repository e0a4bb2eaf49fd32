from __future__ import annotations

import pytest
import torch

from corral.engine.generate import KVCache, generate
from corral.engine.sampling import SamplingParams
from corral.errors import RequestError
from corral.model.attention import PackedCausal
from corral.model.llama import Llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
NO_STOPS: frozenset[int] = frozenset()


def test_the_cache_changes_nothing(llama31_model: Llama) -> None:
    prompt = list(range(40, 60))
    tokens = list(prompt)
    for _ in range(12):  # the whole text anew for every token
        hidden = llama31_model(
            torch.tensor(tokens), torch.arange(len(tokens)), PackedCausal([0, len(tokens)])
        )
        tokens.append(int(llama31_model.logits(hidden[-1:])[0].argmax()))
    assert list(generate(llama31_model, prompt, GREEDY, NO_STOPS, 1000)) == tokens[20:]


def test_a_long_prompt_is_run_in_chunks_and_gives_the_same(
    llama31_model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [i % 512 for i in range(0, 700, 7)]
    whole = list(generate(llama31_model, prompt, GREEDY, NO_STOPS, 1000))
    monkeypatch.setattr("corral.engine.generate.PREFILL_CHUNK", 7)
    assert list(generate(llama31_model, prompt, GREEDY, NO_STOPS, 1000)) == whole


def test_a_seed_fixes_the_text(llama31_model: Llama) -> None:
    def run(seed: int | None) -> list[int]:
        params = SamplingParams(temperature=1.5, max_tokens=20, seed=seed)
        return list(generate(llama31_model, [5, 6, 7], params, NO_STOPS, 1000))

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


def test_every_stop_id_stops(llama31_model: Llama) -> None:
    free = list(generate(llama31_model, [5, 6, 7], GREEDY, NO_STOPS, 1000))
    for stop in free[3:6]:
        cut = free[: free.index(stop) + 1]
        assert list(generate(llama31_model, [5, 6, 7], GREEDY, {stop, 510}, 1000)) == cut
        params = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=(stop,))
        assert list(generate(llama31_model, [5, 6, 7], params, NO_STOPS, 1000)) == cut
    ignoring = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    assert list(generate(llama31_model, [5, 6, 7], ignoring, set(free), 1000)) == free


def test_the_context_ends_the_output(llama31_model: Llama) -> None:
    assert len(list(generate(llama31_model, [5] * 10, GREEDY, NO_STOPS, 15))) == 5


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "empty"), ([5] * 20, "20 tokens and the context 20"), ([5, 512], "512"), ([-1], "-1")],
)
def test_a_prompt_that_cannot_be_run_is_refused(llama31_model: Llama, prompt: list[int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        next(generate(llama31_model, prompt, GREEDY, NO_STOPS, 20))


def test_the_cache_grows_with_the_sequence_and_not_beyond_its_capacity(llama31_model: Llama) -> None:
    cache = KVCache(llama31_model.config, 700, torch.float32, torch.device("cpu"))
    sizes = []
    for start in range(0, 700, 100):
        llama31_model(torch.arange(100), torch.arange(start, start + 100), cache)
        cache.advance(100)
        sizes.append(cache.keys.shape[1])
    assert sizes == [256, 256, 512, 512, 512, 700, 700]
