"""A server that is told to end, or starts in trouble."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.processes import serving

ASK: Any = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "stream": True}


def events(answer: httpx.Response) -> Iterator[str]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def test_sigterm_lets_a_stream_end(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        url = f"{server.base_url}/v1/chat/completions"
        with httpx.stream("POST", url, json={**ASK, "max_tokens": 300}, timeout=60) as answer:
            stream = events(answer)
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            refused = httpx.post(url, json=ASK)
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert httpx.get(f"{server.base_url}/ready").status_code == 503
            assert httpx.get(f"{server.base_url}/health").status_code == 200
            rest = list(stream)
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "[DONE]"
        assert server.process.wait(timeout=30) == 0


def test_a_stream_that_outlasts_the_grace_time_ends_with_an_error(tmp_path: Path) -> None:
    with serving(tmp_path, "--grace-seconds", "0.3") as server:
        url = f"{server.base_url}/v1/chat/completions"
        whole: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: whole.append(httpx.post(url, json={**ASK, "stream": False, "n": 1}, timeout=60))
        )
        waiting.start()
        with httpx.stream("POST", url, json=ASK, timeout=60) as answer:
            stream = events(answer)
            for _ in range(5):
                next(stream)
            server.process.send_signal(signal.SIGTERM)
            rest = list(stream)
        error = json.loads(rest[-2])["error"]
        assert error["code"] == "draining"
        assert rest[-1] == "[DONE]"
        waiting.join()
        assert whole[0].status_code == 503
        assert server.process.wait(timeout=30) == 0


def test_the_port_is_open_before_the_model_is_loaded(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as server:
        states = set()
        while 200 not in states:
            try:
                states.add(httpx.get(f"{server.base_url}/ready", timeout=60).status_code)
            except httpx.ConnectError:
                continue
            if 200 not in states:
                assert httpx.get(f"{server.base_url}/health", timeout=60).status_code == 200
                early = httpx.post(
                    f"{server.base_url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=60
                )
                assert early.status_code in (503, 200)
        assert states == {503, 200}
        assert "ready in" in server.log.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["./no-such-folder"], "no-such-folder"),
        (["--tls-cert", "./none.pem", "--tls-key", "./none.pem"], "none.pem"),
        (["--config", "./none.yaml"], "none.yaml"),
        (["--requests-per-minute", "0"], "requests"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(tmp_path: Path, options: list[str], said: str) -> None:
    with serving(tmp_path, *options, ready=False) as server:
        assert server.process.wait(timeout=60) in (1, 2)
        log = server.log.read_text()
        assert said in log
        assert "Traceback" not in log


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        port = first.base_url.rpartition(":")[2]
        (tmp_path / "second").mkdir()
        with serving(tmp_path / "second", "--port", port, ready=False) as second:
            assert second.process.wait(timeout=60) == 1
            assert port in second.log.read_text()
        assert httpx.get(f"{first.base_url}/ready").status_code == 200
