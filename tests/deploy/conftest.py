"""A server that runs with the arguments that it has in a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.checkpoints.writers import write_chat_model
from tests.deploy.tools import DEPLOY, read_yaml
from tests.server.processes import serving

KEY = "a-key-of-a-test"


@dataclass(frozen=True)
class Deployed:
    """A server in a process of its own, and what its /metrics says after some requests."""

    base_url: str
    metrics: str


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The server of the Kubernetes manifests: their arguments, with a small model and a key file of ours."""
    folder = tmp_path_factory.mktemp("deployed")
    write_chat_model(folder / "model")
    (folder / "keys").write_text(f"tester={KEY}\n")
    places = {
        "smollm2-135m-instruct": str(folder / "model"),
        "/run/secrets/corral/api-keys": str(folder / "keys"),
    }
    arguments = [_replaced(argument, places) for argument in container()["args"]]
    with serving(folder, *arguments) as server:
        _use(server.base_url)
        yield Deployed(server.base_url, httpx.get(f"{server.base_url}/metrics").text)


def container() -> dict[str, Any]:
    """The container of the Kubernetes manifests."""
    manifest = read_yaml((DEPLOY / "kubernetes" / "base" / "statefulset.yaml").read_text())
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return found


def _replaced(text: str, places: dict[str, str]) -> str:
    for ours, theirs in places.items():
        text = text.replace(ours, theirs)
    return text


def _use(base_url: str) -> None:
    """Asks once with the key, and once without."""
    body = {
        "model": "tgi",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 8,
        "ignore_eos": True,
    }
    for headers, status in (({"authorization": f"Bearer {KEY}"}, 200), ({}, 401)):
        answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == status, answer.text
