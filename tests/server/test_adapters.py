"""Adapters that are loaded and unloaded while the server runs: from one folder only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from corral.llm import LLM
from tests.checkpoints.writers import write_chat_model
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL_CHAT, random_model
from tests.server.live_server import LiveServer, live_server

HTTP = httpx.Client(timeout=60)
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters, with some beside it that may not be loaded."""
    place = tmp_path_factory.mktemp("place")
    model, home = random_model(SMALL_CHAT), place / "adapters"
    write_adapter(model, home / "team" / "style-1", seed=1)
    write_adapter(model, home / ".hidden")
    write_adapter(model, place / "outside")
    (home / "link").symlink_to(place / "outside")
    (home / "parent").symlink_to(place)
    (home / "mixed").mkdir()
    (home / "mixed" / "adapter_config.json").symlink_to(place / "outside" / "adapter_config.json")
    (home / "broken").mkdir()
    (home / "broken" / "adapter_config.json").write_text("{")
    return home


@pytest.fixture(scope="module")
def adapting(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("small")
    write_chat_model(folder)
    with live_server(LLM(str(folder), threads=1), "small", adapters_dir=home) as server:
        yield server


def load(server: LiveServer, path: str, name: str = "style") -> httpx.Response:
    body = {"lora_name": name, "lora_path": path}
    return HTTP.post(f"{server.base_url}/v1/load_lora_adapter", json=body)


def unload(server: LiveServer, name: str = "style") -> httpx.Response:
    return HTTP.post(f"{server.base_url}/v1/unload_lora_adapter", json={"lora_name": name})


def message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def reply(server: LiveServer, model: str | None) -> httpx.Response:
    body = {"messages": HI, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "model": model}
    return HTTP.post(f"{server.base_url}/v1/chat/completions", json=body)


def test_a_loaded_adapter_answers_under_its_name_until_it_is_unloaded(adapting: LiveServer) -> None:
    plain = reply(adapting, None).json()["choices"][0]["message"]["content"]
    assert reply(adapting, "style").status_code == 404
    assert load(adapting, "team/style-1").json()["adapters"] == ["style"]
    cards = HTTP.get(f"{adapting.base_url}/v1/models").json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [("small", None), ("style", "small")]
    adapted = reply(adapting, "style").json()
    assert adapted["model"] == "style"
    assert adapted["choices"][0]["message"]["content"] != plain
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 2, "adapter_id": "style"}}
    assert HTTP.post(f"{adapting.base_url}/generate", json=body).status_code == 200
    assert unload(adapting).json()["adapters"] == []
    assert reply(adapting, "style").status_code == 404
    assert reply(adapting, None).json()["choices"][0]["message"]["content"] == plain


def test_an_adapter_in_use_stays(adapting: LiveServer) -> None:
    load(adapting, "team/style-1")
    handles = [
        adapting.service.llm.engine.submit(adapting.service.llm.request([5] * 8, adapter="style"))
        for _ in range(40)
    ]
    refused = unload(adapting)
    assert refused.status_code == 409
    assert "is used by a request" in message(refused)
    for handle in handles:
        handle.cancel()
        list(handle)
    assert unload(adapting).status_code == 200


def test_a_name_is_given_once(adapting: LiveServer) -> None:
    load(adapting, "team/style-1")
    again = load(adapting, "team/style-1")
    assert again.status_code == 409
    assert message(again) == "lora_name: an adapter 'style' is loaded already; unload it first"
    unload(adapting)
    missing = unload(adapting)
    assert missing.status_code == 404
    assert message(missing) == "lora_name: no adapter 'style' is loaded"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("small", 409),
        ("tgi", 409),
        ("", 400),
        ("../x", 400),
        ("a/b", 400),
        ("a b", 400),
        ("a\n", 400),
        ("х", 400),
    ],
)
def test_names_that_confuse_are_refused(adapting: LiveServer, name: str, status: int) -> None:
    answer = load(adapting, "team/style-1", name)
    assert answer.status_code == status
    assert message(answer).startswith("lora_name: ")


@pytest.mark.parametrize("path", ["link", "mixed", "parent/outside", "nothing", "team", "style-1"])
def test_what_lies_outside_is_as_if_it_were_not_there(adapting: LiveServer, path: str) -> None:
    answer = load(adapting, path)
    assert (answer.status_code, message(answer)) == (404, "lora_path: no adapter is there")


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "team/../../outside",
        "..",
        ".hidden",
        "~/x",
        "team//style-1",
        "./team",
        "a\\b",
        "a\0b",
        "",
        "%2e%2e/outside",
        "C:/x",
        "team/style-1/",
        "x" * 5000,
    ],
)
def test_tricks_in_paths_are_refused(adapting: LiveServer, path: str) -> None:
    answer = load(adapting, path)
    assert answer.status_code == 400
    assert message(answer).startswith("lora_path: ")


def test_no_answer_tells_where_the_folder_is(adapting: LiveServer, home: Path) -> None:
    absolute = load(adapting, str(home / "team" / "style-1"))
    assert absolute.status_code == 400
    broken = load(adapting, "broken")
    assert broken.status_code == 400
    assert message(broken).startswith("lora_path: adapter_config.json is not valid JSON")
    for answer in (absolute, broken, load(adapting, "link")):
        assert str(home) not in answer.text
        assert "outside" not in answer.text


def test_a_server_without_a_folder_loads_none(small_server: LiveServer) -> None:
    answer = load(small_server, "team/style-1")
    assert answer.status_code == 403
    assert "--adapters-dir" in message(answer)


def test_only_the_two_fields_are_taken(adapting: LiveServer) -> None:
    body: dict[str, Any] = {"lora_name": "style", "lora_path": "team/style-1", "load_inplace": True}
    answer = HTTP.post(f"{adapting.base_url}/v1/load_lora_adapter", json=body)
    assert message(answer) == "load_inplace is no field that this server knows; remove it"
