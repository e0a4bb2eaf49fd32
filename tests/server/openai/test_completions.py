"""`/v1/completions`, asked by the real client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.completion_create_params import CompletionCreateParamsBase

from corral.engine.request import Score
from corral.engine.sampling.params import SamplingParams
from corral.llm import LLM
from corral.model.presets import DEFAULT_MODEL
from corral.server.openai.completions_body import CompletionBody
from corral.text.tokenizer import Tokenizer
from tests.checkpoints.writers import write_chat_model
from tests.engine.engines import wait_until
from tests.random_models import SMALL_CHAT
from tests.server.conftest import LiveServer
from tests.server.live_server import live_server

FRANCE = "The capital of France is"
ITALY = "Rome is a city in"


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that runs one request at a time; four others may wait."""
    folder = tmp_path_factory.mktemp("narrow")
    write_chat_model(folder, config=replace(SMALL_CHAT, max_position_embeddings=2**16))
    llm = LLM(str(folder), threads=1, max_num_seqs=1, max_waiting_requests=4)
    with live_server(llm, "narrow") as server:
        yield server


def go_on(client: OpenAI, **fields: Any) -> Any:
    """What the server gives for a prompt; greedy and short unless said otherwise."""
    return client.completions.create(
        **{"model": DEFAULT_MODEL, "prompt": FRANCE, "max_tokens": 6, "temperature": 0, **fields}
    )


def joined(chunks: Any) -> tuple[dict[int, dict[str, Any]], Any]:
    """The choices that the chunks of a stream make, and its usage."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        if not chunk.choices:
            usage = chunk.usage
            continue
        (choice,) = chunk.choices
        made = choices.setdefault(choice.index, {"text": "", "reason": None, "logprobs": {}})
        assert made["reason"] is None, "nothing comes after the end"
        made["text"] += choice.text
        made["reason"] = choice.finish_reason
        for name, entries in choice.logprobs or ():
            made["logprobs"].setdefault(name, []).extend(entries)
    return choices, usage


def test_a_text_is_gone_on_with_as_the_engine_does(client: OpenAI, server: LiveServer) -> None:
    answer = go_on(client)
    params = SamplingParams(temperature=0, max_tokens=6)
    (expected,) = server.service.llm.generate(FRANCE, params, use_tqdm=False)
    (choice,) = answer.choices
    assert choice.text == expected.outputs[0].text
    assert "Paris" in choice.text
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (answer.object, answer.model) == ("text_completion", DEFAULT_MODEL)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 6, 11)


def test_sixteen_tokens_are_given_where_nothing_is_said(client: OpenAI) -> None:
    answer = client.completions.create(model=DEFAULT_MODEL, prompt=FRANCE)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_prompts_of_every_kind_give_the_same(client: OpenAI, server: LiveServer) -> None:
    tokenizer = server.service.llm.tokenizer
    ids, others = tokenizer.encode(FRANCE, first=True), tokenizer.encode(ITALY, first=True)
    alone = go_on(client).choices[0].text
    assert go_on(client, prompt=ids).choices[0].text == alone
    for prompts in ([FRANCE, ITALY], [ids, others]):
        several = go_on(client, prompt=prompts)
        assert several.choices[0].text == alone
        assert several.choices[1].text == go_on(client, prompt=ITALY).choices[0].text
        assert several.usage.prompt_tokens == len(ids) + len(others)
        assert several.usage.completion_tokens == 12


def test_several_answers_to_several_prompts_are_numbered_prompt_by_prompt(client: OpenAI) -> None:
    fields: Any = {"n": 2, "temperature": 0.9, "seed": 3}
    together = go_on(client, prompt=[FRANCE, ITALY], **fields).choices
    assert [choice.index for choice in together] == [0, 1, 2, 3]
    apart = [
        choice for prompt in (FRANCE, ITALY) for choice in go_on(client, prompt=prompt, **fields).choices
    ]
    assert [choice.text for choice in together] == [choice.text for choice in apart]
    assert len({choice.text for choice in together}) > 2


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_a_stream_joined_is_the_answer_in_one_piece(client: OpenAI, echo: bool, logprobs: int | None) -> None:
    prompts = ["2 + 2 =", "Grüße, 你好 🤠"]
    fields: Any = {
        "n": 2,
        "temperature": 0.9,
        "seed": 3,
        "echo": echo,
        "logprobs": logprobs,
        "prompt": prompts,
    }
    whole = go_on(client, **fields)
    choices, usage = joined(go_on(client, **fields, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        made = choices.pop(choice.index)
        assert (made["text"], made["reason"]) == (choice.text, choice.finish_reason)
        assert made["logprobs"] == ({} if logprobs is None else dict(choice.logprobs))
        assert choice.text.startswith(prompts[choice.index // 2]) == echo
    assert not choices
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_usage_can_come_with_every_chunk(client: OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(go_on(client, prompt=[FRANCE, ITALY], stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 12


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echoed_logprobs_are_what_a_harness_reads_scores_from(
    client: OpenAI, server: LiveServer, max_tokens: int
) -> None:
    llm = server.service.llm
    context, continuations = llm.tokenizer.encode(FRANCE), [" Paris", " a city of light"]
    prompts = [[*context, *llm.tokenizer.encode(text)] for text in continuations]
    answer = go_on(client, prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        (scored,) = llm.score([prompt], Score(start=len(context), top=1), use_tqdm=False)
        given = slice(len(context), -max_tokens or None)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.top_logprobs[0] is None
        assert tuple(choice.logprobs.token_logprobs[given]) == pytest.approx(scored.token_logprobs)
        places = zip(choice.logprobs.token_logprobs[given], choice.logprobs.top_logprobs[given], strict=True)
        is_greedy = all(logprob == max(top.values()) for logprob, top in places)
        assert is_greedy == all(
            min(n.rank or 0 for n in at.values()) == at[t].rank
            for t, at in zip(prompt[len(context) :], scored.logprobs, strict=True)
        )
    assert answer.usage.completion_tokens == max_tokens * len(prompts)
    assert {choice.finish_reason for choice in answer.choices} == {"length"}


def test_a_prompt_of_one_token_can_be_echoed_and_scored(client: OpenAI, server: LiveServer) -> None:
    prompt = server.service.llm.tokenizer.encode("The")
    for max_tokens in (0, 1):
        (choice,) = go_on(client, prompt=[prompt], echo=True, logprobs=1, max_tokens=max_tokens).choices
        assert choice.text.startswith("The")
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens) == 1 + max_tokens


def test_offsets_are_the_places_of_tokens_in_the_text(client: OpenAI) -> None:
    for prompt, max_tokens in ((FRANCE, 6), ("The tree 🤠 is a tree", 0)):
        (choice,) = go_on(client, prompt=prompt, echo=True, logprobs=2, max_tokens=max_tokens).choices
        lists, text = choice.logprobs, choice.text
        ends = [*lists.text_offset[1:], len(text)]
        in_part = [token.startswith("bytes:\\x") for token in lists.tokens]
        for token, is_part, start, end in zip(lists.tokens, in_part, lists.text_offset, ends, strict=True):
            if is_part:
                assert "🤠" in text[start : start + 2]  # the first of its tokens begins with a space
            else:
                assert text[start:end] == token
        assert (sum(in_part) > 1) == ("🤠" in prompt)
        assert in_part.count(False) >= 5
        assert all(token in top for token, top in zip(lists.tokens[1:], lists.top_logprobs[1:], strict=True))
        assert {len(top) for top in lists.top_logprobs[1:]} <= {2, 3}


def test_logprobs_of_zero_tell_the_chosen_token_alone(client: OpenAI) -> None:
    lists = go_on(client, logprobs=0).choices[0].logprobs
    assert [list(top) for top in lists.top_logprobs] == [[token] for token in lists.tokens]


def test_prompt_logprobs_come_in_the_form_of_vllm(client: OpenAI, server: LiveServer) -> None:
    (choice,) = go_on(client, extra_body={"prompt_logprobs": 1}, echo=True, logprobs=3).choices
    first, *rest = choice.prompt_logprobs
    ids = server.service.llm.tokenizer.encode(FRANCE)
    assert first is None
    for token, at in zip(ids[1:], rest, strict=True):
        assert len(at) in (1, 2)  # the token, and the most likely one
        assert at[str(token)]["rank"] >= 1


def test_an_output_ends_at_a_stop_string(client: OpenAI) -> None:
    (choice,) = go_on(client, prompt="1, 2, 3, 4,", stop=[" 6"], max_tokens=12).choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (" 5,", "stop", " 6")


def test_a_text_can_be_held_to_a_form(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Lyon", "Paris"]}}}
    (choice,) = go_on(client, extra_body={"response_format": form}).choices
    assert choice.text in ('"Paris"', '"Lyon"')
    (choice,) = go_on(client, extra_body={"guided_choice": ["Bonn", "Kiel"]}).choices
    assert choice.text in ("Bonn", "Kiel")


def test_the_token_that_begins_a_text_can_be_left_out(llama3_tokenizer: Tokenizer) -> None:
    begins = llama3_tokenizer.control_id("<|begin_of_text|>")
    texts = llama3_tokenizer.encode("Hi there")
    assert list(CompletionBody.model_validate({"prompt": "x"}).tokens(llama3_tokenizer, "Hi there")) == [
        begins,
        *texts,
    ]
    without = CompletionBody.model_validate({"prompt": "x", "add_special_tokens": False})
    assert list(without.tokens(llama3_tokenizer, "Hi there")) == texts
    assert begins not in without.tokens(llama3_tokenizer, "<|begin_of_text|>")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": []}, "prompt", "it is empty"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "a text, a list of texts"),
        ({"prompt": [1, "a"]}, "prompt", "a text, a list of texts"),
        ({"prompt": [[1], ["a"]]}, "prompt", "a text, a list of texts"),
        ({"prompt": [True]}, "prompt", "a text, a list of texts"),
        ({"prompt": ["fine", ""]}, "prompt[1]", "empty"),
        ({"prompt": [[1], [10**6]]}, "prompt[1]", "outside the vocabulary"),
        ({"prompt": "word " * 3000}, "prompt", "shorten the prompt"),
        ({"suffix": "x"}, "suffix", "leave it out"),
        ({"best_of": 3}, "best_of", "set n"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"n": 0}, "n", "at least 1"),
        ({"max_tokens": 0}, "max_tokens", "set echo"),
        ({"max_tokens": 0, "echo": True, "n": 2}, "n", "nothing in which answers differ"),
        ({"max_tokens": -1}, "max_tokens", "at least"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"stream_options": {}}, "stream_options", "set stream"),
        ({"messages": []}, "messages", "no field"),
        ({"store": True}, "store", "False"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "response_format",
            "only one form",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(
    small_server: LiveServer, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = httpx.post(f"{small_server.base_url}/v1/completions", json={"prompt": "x", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_every_field_of_openais_interface_is_known() -> None:
    assert set(CompletionCreateParamsBase.__annotations__) <= set(CompletionBody.model_fields)


def test_a_batch_that_finds_no_room_leaves_nothing_behind(narrow_server: LiveServer) -> None:
    client = OpenAI(base_url=f"{narrow_server.base_url}/v1", api_key="none", max_retries=0)
    engine = narrow_server.service.llm.engine
    long: Any = {"model": "narrow", "max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
    with client.completions.create(prompt=["a"] * 4, stream=True, **long) as first:
        next(iter(first))
        with pytest.raises(openai.RateLimitError) as refusal:
            client.completions.create(prompt=["b"] * 4, **long)
        assert refusal.value.response.headers["retry-after"] == "1"
        wait_until(lambda: engine.stats().running + engine.stats().waiting <= 4)
        assert narrow_server.service.num_running <= 4
        with pytest.raises(openai.BadRequestError, match="prompt has 5 entries; give at most 4 at once"):
            client.completions.create(prompt=["b"] * 5, **long)
    wait_until(lambda: not narrow_server.service.num_running and not engine.stats().blocks_used)


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_batch_that_is_out_of_time_ends_whole(client: OpenAI, server: LiveServer, prompts: int) -> None:
    late: Any = {"max_tokens": 4000, "extra_headers": {"x-request-timeout": "0.2"}}
    late["extra_body"] = {"ignore_eos": True}
    with pytest.raises(openai.APIStatusError) as refusal:
        go_on(client, prompt=[FRANCE] * prompts, **late)
    assert refusal.value.status_code == 408
    with pytest.raises(openai.APIError) as broken:
        list(go_on(client, prompt=[FRANCE] * prompts, stream=True, **late))
    assert broken.value.code == "timeout"
    engine = server.service.llm.engine
    wait_until(lambda: not server.service.num_running and not engine.stats().blocks_used)


def test_embeddings_are_refused_in_words(small_server: LiveServer) -> None:
    client = OpenAI(base_url=f"{small_server.base_url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="generates text and gives no embeddings"):
        client.embeddings.create(model="small", input="x")


def test_a_model_that_is_not_served_is_not_found(small_server: LiveServer, tmp_path: Path) -> None:
    client = OpenAI(base_url=f"{small_server.base_url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="there are small"):
        client.completions.create(model=str(tmp_path), prompt="x")
