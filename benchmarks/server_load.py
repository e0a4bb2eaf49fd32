"""A server under load: clients that stream, that wait, that leave early and that read slowly.

    python benchmarks/server_load.py [--model NAME] [--clients 64] [--seconds 120]

A third of the requests is left before its end. Meanwhile `/health` is asked 20 times a second. At the end the
server must have nothing left: no request, no block of the key-value cache; and its memory must be at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))

from server_overhead import WORDS, server

from corral.model.presets import DEFAULT_MODEL

KINDS = ("stream", "whole", "stream left", "whole left", "slow reader", "stream")


@dataclass
class Seen:
    """What the clients have seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    health: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    chosen = parser.parse_args()
    # A small cache, all of it touched soon: what grows afterwards is a leak.
    with server(chosen.model, "--kv-cache-memory", "256MiB") as (process, port):
        seen = asyncio.run(load(port, process.pid, chosen.clients, chosen.seconds))
        left = what_is_left(port)
        memory = psutil.Process(process.pid).memory_info().rss
    for outcome, count in sorted(seen.outcomes.items()):
        print(f"{outcome:28} {count}")
    cuts = statistics.quantiles(seen.health, n=100)
    for name, seconds in (("median", cuts[49]), ("p99", cuts[98]), ("worst", max(seen.health))):
        print(f"/health, {name:20} {seconds * 1e3:.1f} ms")
    tenths = [seen.memory[len(seen.memory) * i // 10] for i in range(10)]
    print("memory in MiB, by tenths of the time:", *(size // 2**20 for size in (*tenths, memory)))
    print(f"left: {left}")


async def load(port: int, pid: int, clients: int, seconds: float) -> Seen:
    """Lets clients ask until the time is over, and their last answers come."""
    seen, until = Seen(), time.monotonic() + seconds
    watch = asyncio.create_task(_watch(port, pid, seen))
    await asyncio.gather(*(_client(port, number, until, seen) for number in range(clients)))
    watch.cancel()
    return seen


async def _client(port: int, number: int, until: float, seen: Seen) -> None:
    choose = random.Random(number)
    while time.monotonic() < until:
        kind = choose.choice(KINDS)
        try:
            outcome = await _ask(port, kind, choose)
        except OSError as error:
            outcome = type(error).__name__
        seen.outcomes[f"{kind}: {outcome}"] += 1


async def _ask(port: int, kind: str, choose: random.Random) -> str:
    words = " ".join(choose.choices(WORDS, k=choose.randrange(10, 200)))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"Tell a story with these words: {words}"}],
        "max_tokens": choose.randrange(16, 128),
        "temperature": 0.8,
        "ignore_eos": True,
        "stream": not kind.startswith("whole"),
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + data)
    try:
        if kind == "whole left":
            await asyncio.sleep(choose.random() * 3)
            return "left"
        status = (await reader.readline()).split()[1].decode()
        if kind == "stream left":
            for _ in range(choose.randrange(1, 20)):
                await reader.read(200)
            return "left"
        last = b""
        while piece := await reader.read(256 if kind == "slow reader" else 65536):
            last = (last + piece)[-64:]
            if kind == "slow reader":
                await asyncio.sleep(0.05)
        return status if kind == "whole" or b"[DONE]" in last else f"{status}, cut off"
    finally:
        writer.close()


async def _watch(port: int, pid: int, seen: Seen) -> None:
    process = psutil.Process(pid)
    while True:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        seen.health.append(time.perf_counter() - began)
        seen.memory.append(process.memory_info().rss)
        await asyncio.sleep(0.05)


def what_is_left(port: int) -> dict[str, float]:
    """What the metrics say once nothing runs any more, or after ten seconds."""
    names = ("corral_requests_running", "corral_requests_waiting", "corral_kv_cache_blocks_used")
    found: dict[str, float] = {}
    for _ in range(100):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = [line.split() for line in answer.read().decode().splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, value in lines if name.split("{")[0] in names}
        if not any(found.values()):
            break
        time.sleep(0.1)
    return found


if __name__ == "__main__":
    main()
