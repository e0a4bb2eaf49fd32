"""Llama 3.1 states three ids that end a text: each of them ends it, in raw text and in a dialog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from corral import LLM, SamplingParams
from corral.engine.outputs import CompletionOutput
from corral.text.tokenizer import Tokenizer
from tests.checkpoints.writers import write_hf
from tests.random_models import SMALL_CHAT, random_model

STOPS = {"<|end_of_text|>": 128001, "<|eom_id|>": 128008, "<|eot_id|>": 128009}


@pytest.fixture(scope="module")
def llama31(tmp_path_factory: pytest.TempPathFactory, llama3_tokenizer: Tokenizer) -> Iterator[LLM]:
    """A small network with Llama 3.1's vocabulary, and its stop ids where Llama 3.1 has them."""
    folder = tmp_path_factory.mktemp("llama-3.1")
    write_hf(random_model(replace(SMALL_CHAT, vocab_size=128256, eos_token_ids=(128001,))), folder, shards=1)
    (folder / "tokenizer.json").write_text(llama3_tokenizer.to_json(), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(STOPS.values())}))
    with LLM(str(folder), dtype="float32", prompt_format="llama-3.1") as llm:
        yield llm


def answers(llm: LLM, params: SamplingParams) -> list[CompletionOutput]:
    """Of a text that goes on, and of a dialog."""
    (text,) = llm.generate("Once upon a time", params)
    (dialog,) = llm.chat([{"role": "user", "content": "Hello"}], params)
    return [*text.outputs, *dialog.outputs]


@pytest.mark.parametrize("name", STOPS)
def test_each_of_the_three_stops_and_leaves_no_text(llama31: LLM, name: str) -> None:
    assert llama31.tokenizer.control_id(name) == STOPS[name]
    wanted = SamplingParams(temperature=0.0, max_tokens=9, min_tokens=3, logit_bias={STOPS[name]: 1000.0})
    for output in answers(llama31, wanted):
        assert (output.finish_reason, output.stop_reason) == ("stop", None)
        assert len(output.token_ids) == 4  # three that may not stop, and the one that does
        assert output.token_ids[-1] == STOPS[name]
        assert name not in output.text
    for output in answers(llama31, replace(wanted, ignore_eos=True, min_tokens=0)):
        assert (output.finish_reason, output.token_ids) == ("length", (STOPS[name],) * 9)
