"""The Python interface, with the real default model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corral import LLM, Message, SamplingParams
from corral.engine.outputs import RequestOutput
from corral.engine.prompts import Prompt
from corral.engine.request import Score
from corral.engine.run.native_runner import NativeRunner
from corral.engine.run.runner import TorchRunner
from corral.errors import CheckpointError, CorralError, RenderError, RequestError
from corral.text.rendered import RenderOptions
from tests.checkpoints.writers import write_chat_model
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL_CHAT, random_model

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
    monkeypatch.setattr("corral.llm.load_network", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(RenderError, match="base model"):
        LLM(str(tmp_path), for_chat=True)


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ({"mine": "/nowhere"}, "/nowhere/adapter_config.json does not exist"),
        ({"": "/nowhere"}, "adapter name is ''"),
        ({"mine": None}, "adapter 'mine' is None; it must be the path of a PEFT folder"),
        (["/nowhere"], "adapters is ['/nowhere']; it must map names to PEFT folders"),
    ],
)
def test_an_adapter_that_is_not_there_is_refused_before_a_model_is_fetched(
    monkeypatch: pytest.MonkeyPatch, adapters: Any, said: str
) -> None:
    monkeypatch.setattr("corral.llm.open_model", lambda *_: pytest.fail("the model was asked for"))
    with pytest.raises(CorralError) as refusal:
        LLM(adapters=adapters)
    assert said in str(refusal.value)


def test_an_adapter_or_draft_model_that_does_not_fit_is_refused_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter, draft = (tmp_path / name for name in ("model", "adapter", "draft"))
    write_chat_model(model)
    write_adapter(random_model(replace(SMALL_CHAT, hidden_size=64)), adapter)
    write_chat_model(draft)
    file = draft / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = fields["model"]["vocab"]
    vocabulary["Q"], vocabulary["z"] = vocabulary["z"], vocabulary["Q"]
    file.write_text(json.dumps(fields), encoding="utf-8")
    monkeypatch.setattr("corral.llm.load_network", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(CheckpointError, match="the adapter was made for another model"):
        LLM(str(model), adapters={"mine": adapter})
    with pytest.raises(RequestError, match=r"model has another tokenizer: token \d+ is 'z' and not 'Q'; "):
        LLM(str(model), speculative_config={"model": str(draft)})


def test_a_draft_model_changes_nothing(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    with LLM(str(tmp_path)) as alone, LLM(str(tmp_path), speculative_config={"model": str(tmp_path)}) as two:
        assert two.generate("abc", GREEDY) == alone.generate("abc", GREEDY)
        assert two.engine.stats().counters.accepted_tokens > 0, "the model does not guess as it speaks itself"


def test_too_little_memory_is_explained(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        torch.empty(2**60)  # what torch really says
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(TorchRunner, "run", fail)
        patch.setattr(NativeRunner, "next_logits", fail)
        with pytest.raises(RequestError, match="not enough memory"):
            llm.chat(QUESTION, GREEDY)
    assert "Paris" in llm.chat(QUESTION, GREEDY)[0].outputs[0].text  # the engine goes on


def test_outputs_have_what_users_of_vllm_know(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=2, prompt_logprobs=1)
    (first,) = llm.generate("The capital of Italy is", params)
    assert first.prompt == "The capital of Italy is"
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == len(first.prompt_token_ids)
    (output,) = first.outputs
    assert output.logprobs is not None
    assert output.cumulative_logprob == pytest.approx(
        sum(at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True))
    )
    chosen = output.logprobs[0][output.token_ids[0]]
    assert (chosen.rank, chosen.decoded_token) == (1, " Rome")


def test_several_dialogs_and_several_settings_run_together(llm: LLM) -> None:
    dialogs = [QUESTION, [{"role": "user", "content": "Say hello."}]]
    short, long = (replace(GREEDY, max_tokens=count) for count in (2, 6))
    together = llm.chat(dialogs, [short, long])
    assert [len(result.outputs[0].token_ids) for result in together] == [2, 6]
    assert together == [llm.chat(QUESTION, short)[0], llm.chat(dialogs[1], long)[0]]
    with pytest.raises(RequestError, match="sampling_params has 2 entries for 3 prompts"):
        llm.generate(["a", "b", "c"], [short, long])


def test_scores_tell_a_true_sentence_from_a_false_one(llm: LLM) -> None:
    true, false = llm.score(["The capital of France is Paris.", "The capital of France is potato."])
    assert true.total > false.total
    assert len(true.token_logprobs) == len(true.token_ids) - 1
    (last,) = llm.score("The capital of France is", Score(start=5, next_top=3))
    assert next(iter(last.next_tokens.values())).decoded_token == " Paris"


def test_an_event_loop_gets_the_same(llm: LLM) -> None:
    async def ask() -> tuple[list[RequestOutput], str, list[RequestOutput]]:
        outputs = await llm.agenerate(["The capital of Italy is", "2 + 2 ="], GREEDY)
        text = "".join([delta.text async for delta in llm.astream("2 + 2 =", GREEDY)])
        return outputs, text, await llm.achat(QUESTION, GREEDY)

    outputs, text, answer = asyncio.run(ask())
    assert outputs == llm.generate(["The capital of Italy is", "2 + 2 ="], GREEDY)
    assert text == outputs[1].outputs[0].text
    assert answer == llm.chat(QUESTION, GREEDY)


def test_a_task_that_is_cancelled_cancels_its_request(llm: LLM) -> None:
    async def leave() -> None:
        forever = SamplingParams(temperature=0.0, ignore_eos=True)
        task = asyncio.create_task(llm.agenerate("Once upon a time", forever))
        while not llm.engine.stats().running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    llm.engine.check_integrity()
    assert llm.engine.stats().running == 0


def test_who_leaves_a_stream_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(temperature=0.0, ignore_eos=True))
    next(stream)
    del stream
    llm.engine.check_integrity()  # waits for the step that is running
    assert llm.engine.stats().blocks_used == 0


def test_prompt_lookup_speeds_up_what_repeats_and_changes_nothing(llm: LLM, smollm2_path: Path) -> None:
    prompt = "one two three four five " * 6
    params = replace(GREEDY, max_tokens=40, ignore_eos=True)
    guessing = {"method": "prompt_lookup", "num_speculative_tokens": 4}
    with LLM(str(smollm2_path), dtype="float32", speculative_config=guessing) as quick:
        (output,) = quick.generate(prompt, params)
        assert output == llm.generate(prompt, params)[0]
        assert quick.engine.stats().counters.accepted_tokens > 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype is 'int3'"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 8}, "must be more than max_num_seqs"),
        ({"kv_cache_memory": 1}, "kv_cache_memory"),
        ({"max_model_length": 1}, "max_model_length is no option"),
        ({"speculative_config": {"method": "magic"}}, "speculative_config.method is 'magic'"),
        ({"speculative_config": {"methods": "ngram"}}, "speculative_config.methods is no option"),
    ],
)
def test_a_bad_option_is_refused_by_its_name(tmp_path: Path, option: dict[str, Any], said: str) -> None:
    write_chat_model(tmp_path)
    with pytest.raises(CorralError) as refusal:
        LLM(str(tmp_path), **option)
    assert said in str(refusal.value)
