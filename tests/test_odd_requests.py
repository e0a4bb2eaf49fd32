"""What callers give by mistake, of whatever type, is refused in one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corral import LLM, SamplingParams
from corral.engine.request import Request, Score
from corral.errors import CorralError
from tests.checkpoints.writers import write_chat_model, write_hf
from tests.random_models import SMALL_CHAT, random_model

FOUR = SamplingParams(temperature=0.0, max_tokens=4)
HELLO = [{"role": "user", "content": "hello"}]

# Anything goes here: types are what the tests are about.
Call = Callable[[Any], Any]

ODD: dict[str, tuple[Call, str]] = {
    "no tokens": (lambda llm: submit(llm, None), "the prompt is None; it must be a list of token ids"),
    "tokens as text": (lambda llm: submit(llm, "abc"), "the prompt is 'abc'; it must be a list"),
    "tokens in numpy": (lambda llm: submit(llm, np.arange(3)), "the prompt holds np.int64(0); token ids"),
    "tokens in tokens": (lambda llm: submit(llm, [[5]]), "the prompt holds [5]; token ids are whole numbers"),
    "no params": (lambda llm: submit(llm, [5], None), "params is None; it must be a SamplingParams"),
    "params as a table": (lambda llm: submit(llm, [5], {"n": 1}), "params is {'n': 1}"),
    "stop ids as text": (lambda llm: submit(llm, [5], stop_ids="ab"), "stop_ids is 'ab'"),
    "a stop id of its own": (lambda llm: submit(llm, [5], stop_ids=5), "stop_ids is 5; it must be a list"),
    "a broken stop id": (lambda llm: submit(llm, [5], stop_ids={1.5}), "stop_ids holds 1.5"),
    "a far stop id": (lambda llm: submit(llm, [5], stop_ids={400}), "stop_ids holds token id 400, outside"),
    "a negative stop id": (lambda llm: submit(llm, [5], stop_ids={-1}), "stop_ids holds token id -1"),
    "adapters": (lambda llm: submit(llm, [5], adapter=["a"]), "adapter is ['a']; it must be the name"),
    "a score as truth": (lambda llm: submit(llm, [5], score=True), "score is True; it must be a Score"),
    "no next ids": (lambda _: Score(next_token_ids=None), "score.next_token_ids is None"),  # type: ignore[arg-type]
    "a long timeout": (lambda llm: submit(llm, [5], timeout=10**400), "it must be a number"),
    "a doubtful flag": (lambda llm: submit(llm, [5], continues="no"), "continues is 'no'; it must be True"),
    "no prompts": (lambda llm: llm.generate(None), "prompts is None; it must be a text, a list of token ids"),
    "a number": (lambda llm: llm.generate(5), "prompts is 5; it must be a text"),
    "bytes": (lambda llm: llm.generate(b"abc"), "prompts is b'abc'; it must be a text"),
    "a table": (lambda llm: llm.generate({"prompt": "a"}), "prompts is {'prompt': 'a'}; it must be"),
    "tables": (lambda llm: llm.generate([{"prompt": "a"}]), "prompts[0] is {'prompt': 'a'}; it must be a"),
    "fractions": (lambda llm: llm.generate(["a", 1.5]), "prompts[1] is 1.5; it must be a text or a list of"),
    "an iterator": (lambda llm: llm.generate(iter("ab")), "it must be a text, a list of token ids"),
    "params as text": (lambda llm: llm.generate("a", "x"), "sampling_params is 'x'; it must be a Samp"),
    "params of two kinds": (lambda llm: llm.generate("a", [5]), "sampling_params holds 5; it must be a Samp"),
    "no dialog": (
        lambda llm: llm.chat(None),
        "messages is None; it must be a list of messages, or a list of",
    ),
    "one message": (lambda llm: llm.chat(HELLO[0]), "messages is {'content'"),
    "a dialog as text": (lambda llm: llm.chat("hello"), "messages is 'hello'; it must be a list"),
    "a number in a dialog": (lambda llm: llm.chat([5]), "messages[0]: a message must be an object"),
    "nothing to score": (lambda llm: llm.score(None), "prompts is None; it must be a text"),
    "another score": (
        lambda llm: llm.score([5, 6], "x"),
        "score is 'x'; it must be a Score, or one for each",
    ),
    "nothing to stream": (lambda llm: llm.stream(5), "the prompt is 5; it must be a text or a list"),
    "a model by number": (lambda _: LLM(5), "model is 5; it must be a name or a path"),  # type: ignore[arg-type]
    "a draft by number": (lambda _: LLM(speculative_config={"model": 5}), "speculative_config.model is 5"),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    write_chat_model(folder)
    with LLM(folder, kv_cache_memory=2**20) as llm:
        yield llm


def submit(llm: LLM, tokens: Any, params: Any = FOUR, **fields: Any) -> object:
    return llm.engine.submit(Request(tokens, params, **fields))


@pytest.mark.parametrize("name", ODD)
def test_a_mistake_is_named(llm: LLM, name: str) -> None:
    call, said = ODD[name]
    with pytest.raises(CorralError) as refusal:
        call(llm)
    assert said in str(refusal.value)
    llm.engine.check_integrity()
    assert llm.engine.stats().waiting == 0


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1e-320),
        SamplingParams(temperature=1e300, min_p=1.0),
        SamplingParams(top_p=1e-300, typical_p=1e-300, top_k=10**30),
        SamplingParams(repetition_penalty=1e300, frequency_penalty=2.0),
        SamplingParams(logit_bias=dict.fromkeys(range(400), -1000.0)),
        SamplingParams(logit_bias=dict.fromkeys(range(400), 1000.0), temperature=0.0),
    ],
)
def test_numbers_at_the_edge_still_give_tokens(llm: LLM, params: SamplingParams) -> None:
    (result,) = llm.generate("hello", replace(params, max_tokens=4, seed=1, ignore_eos=True))
    assert len(result.outputs[0].token_ids) == 4


def test_stop_ids_that_the_vocabulary_lacks_are_no_stop_ids(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    write_chat_model(folder)
    write_hf(random_model(replace(SMALL_CHAT, eos_token_ids=(2, 100_000))), folder, shards=1)
    with LLM(folder) as llm:
        assert llm.stop_ids == {2}
        assert llm.generate("hello", replace(FOUR, min_tokens=2))[0].outputs[0].token_ids
