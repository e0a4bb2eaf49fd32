"""What one client may ask, and what a server that cannot answer says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from corral.server.ops.keys import ApiKey
from corral.server.ops.pace import Pace
from tests.server.ops.inner import Running, running

KEYS = (ApiKey.of("alice", "sk-alice"), ApiKey.of("bob", "sk-bob"))


def _post(server: Running, path: str = "/x", key: str = "sk-alice") -> httpx.Response:
    return httpx.post(f"{server.url}{path}", headers={"x-api-key": key}, timeout=30)


def test_requests_in_a_minute_are_counted_for_each_key() -> None:
    with running(api_keys=KEYS, requests_per_minute=3) as server:
        answers = [_post(server) for _ in range(4)]
        other = _post(server, key="sk-bob")
        look = httpx.get(f"{server.url}/v1/models", headers={"x-api-key": "sk-alice"})
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert answers[0].headers["x-ratelimit-reset-requests"].endswith("s")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert answers[3].headers["x-should-retry"] == "true"
    assert answers[3].json()["error"]["type"] == "rate_limit_error"
    assert other.status_code == look.status_code == 200


def test_the_bucket_fills_again() -> None:
    with running(api_keys=KEYS, requests_per_minute=600) as server:
        burst = [_post(server).status_code for _ in range(3)]
        time.sleep(0.5)
        assert _post(server).headers["x-ratelimit-remaining-requests"] == "599"
    assert burst == [200] * 3


def test_requests_at_once_are_counted_for_each_key() -> None:
    with running(api_keys=KEYS, max_concurrent_per_key=2) as server, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(_post, server, "/slow") for _ in range(2)]
        while len(server.inner.seen) < 2:
            time.sleep(0.005)
        refused, other = _post(server), _post(server, key="sk-bob")
        server.inner.go_on.set()
        assert [future.result().status_code for future in held] == [200, 200]
        assert _post(server).status_code == 200
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert other.status_code == 200


def test_a_request_that_fails_gives_its_place_back() -> None:
    with running(api_keys=KEYS, max_concurrent_per_key=1) as server:
        assert [_post(server, "/fails").status_code for _ in range(3)] == [500] * 3
        assert _post(server).status_code == 200


def test_without_keys_an_address_is_a_client() -> None:
    with running(requests_per_minute=1) as server:
        assert [_post(server).status_code for _ in range(2)] == [200, 429]


def test_a_proxy_s_clients_are_told_apart_where_it_is_trusted() -> None:
    def ask(server: Running, address: str) -> int:
        return httpx.post(f"{server.url}/x", headers={"x-forwarded-for": address}).status_code

    with running(requests_per_minute=1) as server:
        assert [ask(server, "203.0.113.1"), ask(server, "203.0.113.2"), ask(server, "203.0.113.1")] == [
            200,
            200,
            429,
        ]
    with running(requests_per_minute=1, trusted_proxies=("192.0.2.1",)) as server:
        assert [ask(server, f"203.0.113.{number}") for number in (1, 2)] == [200, 429]


class _Steady(Pace):
    def seconds_to_wait(self, waiting: int) -> float:
        return 6.2


def test_a_full_queue_says_when_to_come_again() -> None:
    with running() as server:
        first = _post(server, "/busy")
        server.operations.pace = _Steady()
        later = _post(server, "/busy")
        metrics = httpx.get(f"{server.url}/metrics").text
    assert first.status_code == 429
    assert first.headers["retry-after"] == "1"
    assert later.headers["retry-after"] == "7"
    assert 'corral_requests_rejected_total{reason="queue"} 2.0' in metrics


def test_the_pace_of_the_last_requests_says_how_long_to_wait() -> None:
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    assert pace.seconds_to_wait(100) == 1.0
    for _ in range(21):
        pace.ended()
        clock[0] += 0.5
    assert pace.seconds_to_wait(400) == pytest.approx(20.0)
    assert pace.seconds_to_wait(0) == 1.0
    clock[0] += 1e6
    assert pace.seconds_to_wait(400) == 120.0


@pytest.mark.parametrize("state", ["loading", "draining"])
def test_a_server_that_is_not_ready_answers_503(state: str) -> None:
    with running(api_keys=KEYS) as server:
        server.service.state = state  # type: ignore[assignment]
        answer = _post(server, "/v1/chat/completions")
        assert _post(server, key="wrong").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        metrics = httpx.get(f"{server.url}/metrics", headers={"x-api-key": "sk-alice"})
        server.service.state = "ready"
        assert _post(server).status_code == 200
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == state
    assert int(answer.headers["retry-after"]) >= 1
    assert f'corral_requests_rejected_total{{reason="{state}"}} 1.0' in metrics.text


def test_many_clients_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.server.ops.rates._MOST_CLIENTS", 3)
    with running(requests_per_minute=1) as server:
        for number in range(5):
            answer = httpx.post(f"{server.url}/x", headers={"x-forwarded-for": f"203.0.113.{number}"})
            assert answer.status_code == 200
        again = httpx.post(f"{server.url}/x", headers={"x-forwarded-for": "203.0.113.4"})
        forgotten = httpx.post(f"{server.url}/x", headers={"x-forwarded-for": "203.0.113.0"})
    assert (again.status_code, forgotten.status_code) == (429, 200)
