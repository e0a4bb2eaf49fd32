"""One run of one peer, in a process of its own inside the peer's environment.

The job comes as JSON from the standard input. The result goes to a file, because peers print what they like.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from .base import Batching, Load, Running
from .work import Work

_WARM_UP_TOKENS = 4
_SHORT_PROMPT = 32


def main() -> None:
    job = json.load(sys.stdin)
    work = Work(**job["work"])
    load = Load(job["model"], tuple(job["cores"]), work.context, work.slots)
    os.sched_setaffinity(0, load.cores)  # before any thread is started: all of them inherit it
    peer = import_module(f".{job['module']}", __package__)
    begun = time.perf_counter()
    running = peer.load(load)
    loaded = time.perf_counter() - begun
    try:
        result = _many(running, work, job["seed"]) if work.slots > 1 else _single(running, work, job["seed"])
    finally:
        if hasattr(running, "close"):
            running.close()
    result["load_s"] = loaded
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(job["result"]).write_text(json.dumps(result))


def _single(running: Running, work: Work, seed: int) -> dict[str, Any]:
    """Medians of requests one after the other; a whole prompt goes before them, to warm up."""
    prompts = work.prompts(seed)
    running.single(next(prompts), _WARM_UP_TOKENS)
    prefill, decode = [], []
    for prompt in islice(prompts, work.repeats):
        begun = time.perf_counter()
        times = running.single(prompt, work.new_tokens)
        if len(times) != work.new_tokens:
            raise RuntimeError(f"{len(times)} tokens came, not {work.new_tokens}")
        prefill.append(work.prompt_tokens / (times[0] - begun))
        decode.append((work.new_tokens - 1) / (times[-1] - times[0]))
    return {"prefill_tok_s": statistics.median(prefill), "decode_tok_s": statistics.median(decode)}


def _many(running: Batching, work: Work, seed: int) -> dict[str, Any]:
    """All requests at once; a batch as wide, of short prompts, goes before them."""
    warm_up = islice(work.prompts(seed + 1, _SHORT_PROMPT), work.slots)
    running.many(list(warm_up), _WARM_UP_TOKENS)
    prompts = list(islice(work.prompts(seed), work.slots))
    begun = time.perf_counter()
    count = running.many(prompts, work.new_tokens)
    seconds = time.perf_counter() - begun
    if count != work.slots * work.new_tokens:
        raise RuntimeError(f"{count} tokens came, not {work.slots * work.new_tokens}")
    return {"output_tok_s": count / seconds, "seconds": seconds}
