"""A server from its start to its end, in a process of its own: loading, draining, and what stops it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from corral.errors import ConfigError
from corral.server.ops.listen import check_certificate, listen
from corral.server.settings import ServerSettings
from tests.checkpoints.writers import write_chat_model
from tests.server.ops.certificates import CERTIFICATE, KEY, LOCKED_KEY, OTHER_KEY

SLOW = {"prompt": "a", "max_tokens": 60000, "ignore_eos": True, "stream": True}


@dataclass
class Server:
    """`corral serve` while it runs."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def end(self) -> int:
        return self.process.wait(30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dataclasses import replace

    from tests.random_models import SMALL_CHAT

    folder = tmp_path_factory.mktemp("models") / "model"
    write_chat_model(folder, config=replace(SMALL_CHAT, max_position_embeddings=65536))
    return folder


@contextmanager
def _serve(model: Path | str, *flags: str, **environment: str) -> Iterator[Server]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [
        sys.executable,
        "-m",
        "corral",
        "serve",
        str(model),
        "--port",
        "0",
        "--threads",
        "1",
        "--no-page",
    ]
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    said: list[str] = []
    assert process.stderr is not None
    lines = process.stderr
    reader = threading.Thread(target=lambda: said.extend(iter(lines.readline, "")))
    reader.start()
    try:
        _wait(lambda: bool(said) or process.poll() is not None)
        address = re.search(r"https?://\S+", "".join(said))
        yield Server(process, address[0] if address else "", said)
    finally:
        process.kill()
        process.communicate()
        reader.join()


def _wait(until: Callable[[], bool]) -> None:
    for _ in range(6000):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass within a minute")


def _is_ready(server: Server, **more: Any) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return httpx.get(f"{server.url}/ready", timeout=30, **more).status_code == 200
        except httpx.TransportError:
            return False

    return ask


def test_a_server_says_503_while_it_loads_and_drains_at_a_signal(model: Path) -> None:
    with _serve(model, "--grace-seconds", "30") as server:
        assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
        _wait(_is_ready(server))
        _wait(lambda: any(line.startswith("ready in ") for line in server.said))
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**SLOW, "max_tokens": 8000}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.send_signal(signal.SIGTERM)
            _wait(lambda: httpx.get(f"{server.url}/ready").json()["status"] == "draining")
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
            rest = [line for line in lines if line]
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert rest[-1] == "data: [DONE]"
        assert '"error"' not in "".join(rest)
        assert server.end() == 0


def test_what_runs_on_after_the_grace_time_ends_with_an_error(model: Path) -> None:
    with _serve(model, "--grace-seconds", "0") as server:
        _wait(_is_ready(server))
        with httpx.stream("POST", f"{server.url}/v1/completions", json=SLOW, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line.startswith("data: {")]
        assert "shutting down" in rest[-1]
        assert server.end() == 0


def test_a_second_signal_ends_it_at_once(model: Path) -> None:
    with _serve(model, "--grace-seconds", "600") as server:
        _wait(_is_ready(server))
        with httpx.stream("POST", f"{server.url}/v1/completions", json=SLOW, timeout=60) as answer:
            lines = answer.iter_lines()  # kept: the connection is closed where nobody reads on
            assert next(lines).startswith("data: ")
            server.process.send_signal(signal.SIGTERM)
            _wait(lambda: httpx.get(f"{server.url}/ready").json()["status"] == "draining")
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 128 + signal.SIGTERM


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    with _serve(tmp_path / "nothing") as server:
        assert server.end() == 1
        _wait(lambda: server.said[-1].startswith("corral: "))
        assert "nothing" in server.said[-1]
        assert not any("Traceback" in line for line in server.said)


def test_keys_of_the_environment_and_of_a_file_hold(model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("alice=sk-file\n")
    with _serve(
        model, "--api-key-file", str(keys), "--log-format", "json", CORRAL_API_KEY="sk-env"
    ) as server:
        _wait(_is_ready(server))
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        for key in ("sk-file", "sk-env"):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        out, _ = server.process.communicate(timeout=30)
    told = out + "".join(server.said)
    assert '"key": "alice"' in told
    assert "sk-" not in told


def test_a_server_speaks_tls(model: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(CERTIFICATE)
    key.write_text(KEY)
    with _serve(model, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        _wait(_is_ready(server, verify=False))


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        (None, KEY, "cert.pem cannot be read: No such file"),
        (CERTIFICATE, None, "key.pem cannot be read: No such file"),
        ("hello", KEY, "no PEM files"),
        (CERTIFICATE, "hello", "no PEM files"),
        (CERTIFICATE, OTHER_KEY, "is not the key of the certificate"),
        (CERTIFICATE, LOCKED_KEY, "locked with a password"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_in_words(
    tmp_path: Path, cert: str | None, key: str | None, words: str
) -> None:
    for name, text in (("cert.pem", cert), ("key.pem", key)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_a_taken_port_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
            listen(ServerSettings(port=port))


@pytest.mark.parametrize("host", ["203.0.113.77", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused_in_words(host: str) -> None:
    with pytest.raises(ConfigError, match="no address of this machine"):
        listen(ServerSettings(host=host, port=0))
