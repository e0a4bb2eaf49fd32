"""What HTTP costs over the engine alone: the same requests, streamed to clients and run in the process.

    python benchmarks/server_overhead.py [--model NAME] [--concurrency 64] [--tokens 256] [--rounds 5]

The client reads what has come twice a second, so that its own work hardly counts: in use it is another
machine's. Both ways use the same options, and each starts a process of its own.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from corral.model.presets import DEFAULT_MODEL

WORDS = ["river", "stone", "house", "cloud", "garden", "letter", "winter", "market", "silver", "bridge"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone:
        serve_alone(chosen)
        return
    ratios = []
    options = ["--max-num-seqs", str(_max_num_seqs(chosen)), *_threads(chosen)]
    with _alone(chosen) as alone, server(chosen.model, *options) as (_, port):
        for number in range(chosen.rounds + 1):
            # What one round leaves in the prefix cache must not help the next.
            bodies = [_body(chosen, i, salt=str(number)) for i in range(chosen.concurrency)]
            engine, http = alone(), through_http(port, bodies)
            if number:  # the first round warms up
                ratios.append(http / engine)
                print(f"engine alone {engine:.0f} tok/s, through HTTP {http:.0f} tok/s: {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f}")


def through_http(port: int, bodies: list[bytes]) -> float:
    """Tokens per second of streams that run at once."""
    began = time.perf_counter()
    streams = []
    for body in bodies:
        connection = socket.create_connection(("127.0.0.1", port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(
            head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body
        )
        connection.setblocking(False)
        streams.append(connection)
    received = {connection: bytearray() for connection in streams}
    while streams:
        time.sleep(0.5)
        for connection in list(streams):
            try:
                data = connection.recv(1 << 20)
            except BlockingIOError:
                continue
            received[connection] += data
            if not data:
                connection.close()
                streams.remove(connection)
    seconds = time.perf_counter() - began
    return sum(_completion_tokens(bytes(data)) for data in received.values()) / seconds


def serve_alone(chosen: Any) -> None:
    """Runs the requests each time a line comes, and answers with the tokens per second."""
    from corral import LLM, SamplingParams
    from corral.engine.batches import run_batch

    llm = LLM(chosen.model, threads=chosen.threads, max_num_seqs=_max_num_seqs(chosen))
    params = SamplingParams(temperature=0.0, max_tokens=chosen.tokens, ignore_eos=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        requests = [llm.chat_request(_messages(number), params) for number in range(chosen.concurrency)]
        run_batch(llm.engine, requests, llm.tokenizer, use_tqdm=False)
        tokens = chosen.concurrency * chosen.tokens
        print(tokens / (time.perf_counter() - began), flush=True)
        llm.engine.reset_prefix_cache()


def _max_num_seqs(chosen: Any) -> int:
    return max(64, int(chosen.concurrency))


def _messages(number: int) -> list[dict[str, str]]:
    words = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(40))
    return [{"role": "user", "content": f"{number}. Tell a story with these words: {words}"}]


def _body(chosen: Any, number: int, salt: str) -> bytes:
    fields: dict[str, Any] = {"messages": _messages(number), "max_tokens": chosen.tokens, "temperature": 0}
    fields |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({**fields, "cache_salt": salt}).encode()


def _completion_tokens(answer: bytes) -> int:
    at = answer.rfind(b'"completion_tokens":')
    if at < 0:
        raise SystemExit(f"the server answered {answer[:300]!r}")
    return int(answer[at + 20 : at + 30].split(b",")[0])


@contextmanager
def _alone(chosen: Any) -> Iterator[Any]:
    options = [
        "--model",
        chosen.model,
        "--concurrency",
        str(chosen.concurrency),
        "--tokens",
        str(chosen.tokens),
        *_threads(chosen),
    ]
    process = subprocess.Popen(
        [sys.executable, __file__, "--alone", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def run() -> float:
        requests.write("\n")
        requests.flush()
        return float(answers.readline())

    try:
        yield run
    finally:
        process.terminate()
        process.wait()


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server in a process of its own, ready for requests; and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "corral", "serve", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_until_ready(port, process)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def _threads(chosen: Any) -> list[str]:
    return [] if chosen.threads is None else ["--threads", str(chosen.threads)]


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
