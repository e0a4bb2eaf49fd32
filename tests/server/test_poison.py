"""A request that the engine cannot bear fails alone, and is told so in words."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from corral.engine.run.batch import Span
from tests.server.live_server import LiveServer

POISON = 77


@pytest.fixture
def fragile(small_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> LiveServer:
    """The small model on a device that cannot bear one token."""
    runner = small_server.service.llm.engine._core._runner

    def breaking(name: str) -> None:
        whole = getattr(runner, name)

        def run(spans: Sequence[Span], *rest: Any) -> Any:
            if any(POISON in span.tokens for span in spans):
                raise RuntimeError(f"{__file__}: the device does not like this token")
            return whole(spans, *rest)

        monkeypatch.setattr(runner, name, run)

    for name in ("run", "next_logits"):
        if hasattr(runner, name):
            breaking(name)
    return small_server


def ask(server: LiveServer, **fields: Any) -> httpx.Response:
    body = {
        "max_tokens": 40,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {str(POISON): -100},
        **fields,
    }
    return httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=60)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_a_poisonous_request_leaves_the_others_unharmed(fragile: LiveServer) -> None:
    prompts = [[5 + i] * 6 for i in range(6)]
    expected = [text_of(ask(fragile, prompt=prompt)) for prompt in prompts]
    found: dict[int, str] = {}

    def go_on(number: int) -> None:
        found[number] = text_of(ask(fragile, prompt=prompts[number], cache_salt="again"))

    threads = [threading.Thread(target=go_on, args=(i,)) for i in range(len(prompts))]
    for number, thread in enumerate(threads):
        thread.start()
        if number % 2:
            bad = ask(fragile, prompt=[5, POISON, 7])
            assert bad.status_code == 500
            assert bad.json()["error"]["code"] == "engine_error"
            assert "device" not in bad.text  # what went wrong inside is the log's
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(prompts))] == expected


def test_a_stream_that_breaks_off_ends_with_an_error_event(fragile: LiveServer) -> None:
    body = {"prompt": [5, POISON, 7], "max_tokens": 8, "stream": True}
    with httpx.stream("POST", f"{fragile.base_url}/v1/completions", json=body) as answer:
        events = [line for line in answer.iter_lines() if line]
    assert '"error"' in events[-2]
    assert events[-1] == "data: [DONE]"
    assert __file__ not in "".join(events)
