"""Who gets in: keys on every route, and the ways to write a path that must not pass by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import ConfigError
from corral.server.ops.asgi import plain_path
from corral.server.ops.keys import ApiKey, KeyRing, read_key_file
from corral.server.settings import ServerSettings
from tests.server.ops.inner import Running, running

KEYS = (ApiKey.of("alice", "sk-alice-1234"), ApiKey.of("bob", "sk-bob-5678"))
ADMIN = (ApiKey.of("root", "sk-admin-0000"),)
LOAD = "/v1/load_lora_adapter"
ROUTES = ("/v1/chat/completions", "/v1/models", "/", "/docs", "/generate", "/invocations", "/nothing", LOAD)


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server with keys, and an admin's."""
    with running(api_keys=KEYS, admin_keys=ADMIN) as server:
        yield server


@pytest.fixture(autouse=True)
def _unseen(locked: Running) -> None:
    locked.inner.seen.clear()


def test_every_route_but_health_needs_a_key(locked: Running) -> None:
    with httpx.Client(base_url=locked.url) as client:
        for route in (*ROUTES, "/metrics"):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
                answer = client.request(method, route)
                assert answer.status_code == 401, (method, route)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert locked.inner.seen == []
        for route in ("/health", "/ready", "/ping"):
            assert client.get(route).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-alice-1234"},
        {"authorization": "bearer   sk-alice-1234"},
        {"x-api-key": "sk-bob-5678"},
        {"x-api-key": "sk-bob-5678", "authorization": "Bearer placeholder"},
        {"authorization": "Bearer sk-admin-0000"},
    ],
)
def test_a_key_opens_the_ordinary_routes(locked: Running, headers: dict[str, str]) -> None:
    assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer sk-alice-123",
        "Bearer sk-alice-12345",
        "Bearer SK-ALICE-1234",
        "Bearer sk-alice-1234,sk-bob-5678",
        "Basic sk-alice-1234",
        "sk-alice-1234",
        "Bearer sk-alice-1234 x",
        "Bearer \u00e4",
        "Bearer " + "a" * 5000,
    ],
)
def test_an_almost_right_key_is_refused_in_the_shape_of_openai(locked: Running, value: str) -> None:
    headers = [(b"authorization", value.encode("latin-1"))]
    answer = httpx.get(f"{locked.url}/v1/models", headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert error["type"] == "authentication_error"
    assert error["code"] == "invalid_api_key"
    assert "sk-alice" not in answer.text


def test_anthropic_s_route_refuses_in_its_own_shape(locked: Running) -> None:
    body = httpx.post(f"{locked.url}/v1/messages", json={}).json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "route", ["/health/", "//health", "/HEALTH", "/%68ealth/x", "/health/../v1/models", "/health;a"]
)
def test_no_other_way_of_writing_an_open_path_is_open(locked: Running, route: str) -> None:
    answer = locked.raw(f"GET {route} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "route",
    [
        LOAD,
        "/v1/unload_lora_adapter",
        f"{LOAD}/",
        f"/{LOAD}",
        "//v1//load_lora_adapter",
        LOAD.upper(),
        "/v1/load%5flora_adapter",
        "/v1/load%255flora_adapter",
        "/v1/x/../load_lora_adapter",
        "/v1/./load_lora_adapter",
        "/v1/load_lora_adapter;x",
        "/v1\\load_lora_adapter",
        "/v1/load_lora_adapter/below",
    ],
)
def test_an_ordinary_key_never_reaches_what_is_the_admin_s(locked: Running, route: str) -> None:
    head = f"POST {route} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: "
    answer = locked.raw(f"{head}sk-alice-1234\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert locked.inner.seen == []
    assert locked.raw(f"{head}sk-admin-0000\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 ")


def test_without_an_admin_key_its_routes_are_closed_in_words() -> None:
    with running() as server:
        answer = httpx.post(f"{server.url}{LOAD}")
        assert httpx.post(f"{server.url}/v1/chat/completions").status_code == 200
    assert answer.status_code == 403
    assert "--admin-key" in answer.json()["error"]["message"]


def test_metrics_are_the_admin_s_unless_they_are_open() -> None:
    ordinary, admin = {"x-api-key": "sk-alice-1234"}, {"x-api-key": "sk-admin-0000"}
    with running(api_keys=KEYS, admin_keys=ADMIN) as server:
        assert httpx.get(f"{server.url}/metrics", headers=ordinary).status_code == 403
        assert "corral_" in httpx.get(f"{server.url}/metrics", headers=admin).text
    with running(api_keys=KEYS) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/metrics", headers=ordinary).status_code == 200
    with running(api_keys=KEYS, admin_keys=ADMIN, metrics_open=True) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        assert httpx.get(f"{server.url}/metrics/").status_code == 401


def test_the_page_s_own_paths_need_no_key() -> None:
    def is_page(method: str, path: str) -> bool:
        return method == "GET" and path == "/assets/app.js"

    with running(api_keys=KEYS, is_page=is_page) as server:
        assert httpx.get(f"{server.url}/assets/app.js").status_code == 200
        assert httpx.post(f"{server.url}/assets/app.js").status_code == 401
        assert httpx.get(f"{server.url}/assets/other").status_code == 401


def test_keys_stay_those_of_a_server_behind_a_prefix() -> None:
    with running(api_keys=KEYS, root_path="/llm") as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/llm/health").status_code == 401
        assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_a_preflight_of_an_allowed_page_needs_no_key() -> None:
    origin = "https://chat.example.org"
    asks = {"origin": origin, "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization,content-type"
    with running(api_keys=KEYS, cors_origins=(origin,)) as server:
        answer = httpx.options(f"{server.url}/v1/chat/completions", headers=asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "authorization" in answer.headers["access-control-allow-headers"]
        other = httpx.options(f"{server.url}/v1/models", headers={**asks, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = httpx.get(f"{server.url}/v1/models", headers={"origin": origin})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == origin
    with running(api_keys=KEYS) as server:
        assert httpx.options(f"{server.url}/v1/models", headers=asks).status_code == 401


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=40))
def test_a_plain_path_stays_plain(path: str) -> None:
    plain = plain_path(path)
    assert plain.startswith("/")
    assert ".." not in plain.split("/")
    assert "//" not in plain


@given(st.binary(max_size=40))
def test_no_other_text_is_a_key(text: bytes) -> None:
    ring = KeyRing(KEYS, ADMIN)
    assert (ring.find([text]) is None) == (text not in (b"sk-alice-1234", b"sk-bob-5678", b"sk-admin-0000"))


def test_a_key_file_has_comments_and_names(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("# users\nalice=sk-1\n\nsk-2\n  carol = sk=3 \n")
    keys = read_key_file(path)
    assert [key.name for key in keys] == ["alice", "key-4", "carol"]
    assert keys[2] == ApiKey.of("carol", "sk=3")


def test_a_key_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xef\xbb\xbfsk-1\r\n")
    assert read_key_file(path) == [ApiKey.of("key-1", "sk-1")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key"),
        ("alice=geheim wort\n", "line 1"),
        ("ok\nümlaut-geheim\n", "line 2"),
    ],
)
def test_a_key_file_is_refused_without_showing_a_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words) as refused:
        read_key_file(path)
    assert "geheim" not in str(refused.value)


def test_settings_show_no_key() -> None:
    assert "sk-alice" not in repr(ServerSettings(api_keys=KEYS))


def test_one_key_cannot_be_two() -> None:
    with pytest.raises(ConfigError, match="are the same"):
        ServerSettings(api_keys=KEYS, admin_keys=(ApiKey.of("root", "sk-bob-5678"),))
    with pytest.raises(ConfigError, match="two keys are called 'alice'"):
        ServerSettings(api_keys=(*KEYS, ApiKey.of("alice", "another")))
