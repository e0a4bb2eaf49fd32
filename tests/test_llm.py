"""The Python interface, with the real default model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corral import LLM, Message, SamplingParams
from corral.errors import RenderError, RequestError
from corral.llm import Prompt
from corral.text.rendered import RenderOptions
from tests.checkpoints.writers import write_chat_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=16)
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(str(smollm2_path), dtype="float32")


def test_a_real_model_answers_a_real_question(llm: LLM) -> None:
    (result,) = llm.chat(QUESTION, GREEDY)
    (output,) = result.outputs
    assert "Paris" in output.text
    assert output.finish_reason == "stop"
    assert output.token_ids[-1] == llm.tokenizer.control_id("<|im_end|>")
    assert result.prompt_token_ids == llm.render(QUESTION).tokens


def test_the_pieces_of_a_stream_make_the_whole(llm: LLM) -> None:
    deltas = list(llm.stream_chat(QUESTION, GREEDY))
    (result,) = llm.chat(QUESTION, GREEDY)
    assert "".join(delta.text for delta in deltas) == result.outputs[0].text
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "stop"


def test_several_prompts_give_as_many_outputs(llm: LLM) -> None:
    prompts: list[Prompt] = ["The capital of Italy is", llm.tokenizer.encode("2 + 2 =")]
    both = llm.generate(prompts, replace(GREEDY, max_tokens=4))
    assert "Rome" in both[0].outputs[0].text
    assert both[0].outputs[0].finish_reason == "length"
    assert [llm.generate(prompt, replace(GREEDY, max_tokens=4))[0] for prompt in prompts] == both


def test_greedy_is_the_default_where_the_makers_say_nothing(llm: LLM) -> None:
    assert llm.default_sampling_params() == SamplingParams(temperature=0.0)


def test_the_makers_defaults_are_used(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    recommended = replace(llm.checkpoint.generation, do_sample=True, temperature=0.6, top_p=0.9)
    monkeypatch.setattr(llm.checkpoint, "generation", recommended)
    assert llm.default_sampling_params() == SamplingParams(temperature=0.6, top_p=0.9)


def test_an_answer_can_be_begun_for_the_model(llm: LLM) -> None:
    begun: list[Message | Mapping[str, str]] = [*QUESTION, Message("assistant", "The capital of France is")]
    options = RenderOptions(add_generation_prompt=False, continue_final_message=True)
    (result,) = llm.chat(begun, GREEDY, options=options)
    assert result.outputs[0].text.startswith(" Paris")


def test_a_bad_request_is_refused_before_the_first_piece_is_asked_for(llm: LLM) -> None:
    with pytest.raises(RequestError, match="context"):
        llm.stream("word " * 9000)
    with pytest.raises(RequestError, match="empty"):
        llm.stream([])
    with pytest.raises(RenderError, match=r"messages\[0\]: role is 'wizard'"):
        llm.stream_chat([{"role": "wizard", "content": "x"}])


def test_the_context_can_be_shortened_but_not_stretched(smollm2_path: Path) -> None:
    short = LLM(str(smollm2_path), max_model_len=60)
    (result,) = short.chat(QUESTION, SamplingParams(temperature=0.0, ignore_eos=True))
    assert len(result.prompt_token_ids) + len(result.outputs[0].token_ids) == 60
    for length, said in ((8193, "the model's context is 8192"), (0, "at least 1")):
        with pytest.raises(RequestError, match=said):
            LLM(str(smollm2_path), max_model_len=length)


def test_a_base_model_is_refused_for_chat_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chat_model(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    monkeypatch.setattr("corral.llm.load_model", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(RenderError, match="base model"):
        LLM(str(tmp_path), for_chat=True)


def test_too_little_memory_is_explained(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        torch.empty(2**60)  # what torch really says
        raise AssertionError

    monkeypatch.setattr("corral.engine.generate._prefill", fail)
    with pytest.raises(RequestError, match="not enough memory on cpu"):
        llm.chat(QUESTION, GREEDY)
