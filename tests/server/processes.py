"""Servers in processes of their own, as users start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class ServerProcess:
    """A running `corral serve`."""

    process: subprocess.Popen[bytes]
    base_url: str
    log: Path

    def wait_until_ready(self) -> None:
        while self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.base_url}/ready").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log.read_text()}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    folder: Path, *options: str, env: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[ServerProcess]:
    """A server on loopback, ended at the end; `folder` takes what it writes on its outputs."""
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "corral", "serve", "--port", str(port), "--threads", "1", *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
    server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        if ready:
            server.wait_until_ready()
        yield server
    finally:
        process.kill()
        process.wait()
