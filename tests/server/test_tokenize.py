"""Tokens of texts and of dialogs, and back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from corral.text.tokenizer import Tokenizer
from tests.server.live_server import LiveServer

HTTP = httpx.Client(timeout=60)
HI = [{"role": "user", "content": "Hi <|im_end|>"}]


def ask(server: LiveServer, path: str, body: Any) -> Any:
    answer = HTTP.post(server.base_url + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tokenizer(server: LiveServer) -> Tokenizer:
    return server.service.llm.tokenizer


def test_a_text_becomes_tokens_and_text_again(server: LiveServer) -> None:
    found = ask(server, "/tokenize", {"prompt": "Grüße aus Łódź", "return_token_strs": True})
    assert found["tokens"] == tokenizer(server).encode("Grüße aus Łódź", first=True)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == server.service.llm.max_model_len
    assert ask(server, "/detokenize", {"tokens": found["tokens"]}) == {"prompt": "Grüße aus Łódź"}
    assert "token_strs" not in ask(server, "/tokenize", {"prompt": "a"})


def test_a_texts_control_tokens_are_text(server: LiveServer) -> None:
    tokens = ask(server, "/tokenize", {"prompt": "<|im_end|>"})["tokens"]
    assert not any(map(tokenizer(server).is_control, tokens))
    assert ask(server, "/tokenize", {"prompt": "<|im_end|>", "add_special_tokens": False})["tokens"] == tokens


def test_a_dialog_has_the_tokens_that_its_answer_counts(server: LiveServer) -> None:
    found = ask(server, "/tokenize", {"messages": HI, "max_tokens": 1})
    answer = ask(server, "/v1/chat/completions", {"messages": HI, "max_tokens": 1})
    assert found["count"] == answer["usage"]["prompt_tokens"]
    assert ask(server, "/detokenize", {"tokens": found["tokens"]}) == ask(
        server, "/apply-template", {"messages": HI}
    )


def test_a_template_is_applied_with_what_the_dialog_asks_for(server: LiveServer) -> None:
    assert ask(server, "/apply-template", {"messages": HI})["prompt"].endswith("<|im_start|>assistant\n")
    without = {"messages": HI, "add_generation_prompt": False}
    assert ask(server, "/apply-template", without)["prompt"].endswith("Hi <|im_end|><|im_end|>\n")
    continued = [*HI, {"role": "assistant", "content": "Yes,"}]
    told = ask(server, "/apply-template", {"messages": continued, "continue_final_message": True})["prompt"]
    assert told.endswith("<|im_start|>assistant\nYes,")


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/tokenize", {}, 400, "prompt is missing"),
        ("/tokenize", {"prompt": 5}, 400, "prompt: input should be a valid string"),
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "prompt is no field"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools is no field"),
        ("/tokenize", {"prompt": "a" * (2**21 + 1)}, 400, "prompt: string should have at most"),
        ("/tokenize", {"prompt": "a", "model": "another"}, 404, "model 'another' is not served"),
        ("/tokenize", {"messages": []}, 400, "messages: list should have at least 1 item"),
        ("/tokenize", [], 400, "the body"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens: token id 1000000000 is outside the vocabulary"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]: "),
        ("/detokenize", {"tokens": [1.5]}, 400, "tokens[0]: "),
        ("/detokenize", {"tokens": [0] * (2**18 + 1)}, 400, "tokens: list should have at most"),
        ("/apply-template", {"prompt": "a"}, 400, "messages is missing"),
    ],
)
def test_what_has_no_tokens_is_refused(
    server: LiveServer, path: str, body: Any, status: int, sentence: str
) -> None:
    answer = HTTP.post(server.base_url + path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(sentence)
