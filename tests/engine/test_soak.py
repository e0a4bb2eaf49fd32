"""Hundreds of requests of every kind through one small engine."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from corral.engine.config import SchedulerConfig
from corral.engine.engine import Engine
from corral.engine.events import Failed, Finished, PromptScored, Tokens
from corral.engine.handle import Handle
from corral.engine.request import Request, Score
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.model.llama import Llama
from corral.text.tokenizer import Tokenizer
from tests.engine.engines import check_idle, running_engine
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL_CHAT, random_model
from tests.text.vocabularies import chatml_tokenizer_json

ROUNDS, REQUESTS = 10, 50
STOPS = frozenset({2})
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "blue"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["color", "sizes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def network() -> Llama:
    return random_model(SMALL_CHAT)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    path.write_text(chatml_tokenizer_json())
    return Tokenizer.from_hf(path)


def any_request(rng: random.Random) -> Request:
    """A request of some kind, all of which end."""
    shared = [7] * rng.choice((0, 0, 12, 24))  # some begin alike
    tokens = [*shared, *(rng.randrange(3, 400) for _ in range(rng.randint(1, 30)))]
    kind = rng.choice(("plain", "plain", "schema", "stop", "several", "score", "logprobs"))
    fields: dict[str, Any] = {
        "max_tokens": rng.randint(1, 30),
        "temperature": rng.choice((0.7, 1.0, 1.5)),
        "seed": rng.randrange(100),
        "repetition_penalty": rng.choice((1.0, 1.2)),
    }
    if kind == "schema":
        fields |= {"structured_outputs": StructuredOutputsParams(json=SCHEMA), "max_tokens": None}
        tokens = tokens[:10]
    elif kind == "stop":
        fields |= {"stop": ("e", "ox", "the")}
    elif kind == "several":
        fields |= {"n": rng.randint(2, 4)}
    elif kind == "logprobs":
        fields |= {"logprobs": 5, "prompt_logprobs": 1}
    return Request(
        tokens,
        SamplingParams(**fields),
        STOPS,
        score=Score(next_top=3) if kind == "score" else None,
        adapter=rng.choice((None, None, "one", "two")),
        cache_salt=rng.choice(("", "tenant")),
        priority=rng.randint(0, 2),
    )


def check(handle: Handle, cancelled: bool) -> None:
    """Asserts that a request has ended as its kind should."""
    events, request = list(handle), handle.request
    assert not any(isinstance(event, Failed) for event in events), events[-1]
    ends = [event for event in events if isinstance(event, Finished)]
    assert sorted(e.index for e in ends) == list(range(1 if request.score else request.params.n))
    for end in ends:
        assert end.reason in ({"stop", "length", "cancelled"} if cancelled else {"stop", "length"})
        if end.reason == "cancelled":
            continue
        text = "".join(e.text for e in events if isinstance(e, Tokens) and e.index == end.index)
        if request.score is not None:
            assert any(isinstance(event, PromptScored) for event in events)
        elif request.params.structured_outputs is not None and end.reason == "stop":
            value = json.loads(text)
            assert value["color"] in ("red", "green", "blue")
            assert all(0 <= size <= 99 for size in value["sizes"])
        elif isinstance(end.stop, str):
            assert not any(stop in text for stop in request.params.stop)


def one_round(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    handles = [engine.submit(any_request(rng)) for _ in range(REQUESTS)]
    cancelled = set(rng.sample(range(REQUESTS), REQUESTS // 6))
    for index in cancelled:
        handles[index].cancel()
    for index, handle in enumerate(handles):
        check(handle, index in cancelled)
    check_idle(engine)


def test_five_hundred_requests_end_rightly_and_leave_nothing_behind(
    network: Llama, vocabulary: Tokenizer, tmp_path: Path
) -> None:
    config = SchedulerConfig(max_num_seqs=12, max_num_batched_tokens=48)
    with running_engine(
        network,
        tokenizer=vocabulary,
        num_blocks=60,
        config=config,
        speculate="prompt_lookup",
        max_model_len=SMALL_CHAT.max_position_embeddings,
    ) as engine:
        for seed, name in enumerate(("one", "two")):
            write_adapter(network, tmp_path / name, seed=seed)
            engine.load_adapter(name, tmp_path / name)
        sizes = []
        for seed in range(ROUNDS):
            one_round(engine, seed)
            sizes.append(psutil.Process().memory_info().rss)
        stats = engine.stats()
        assert stats.preemptions > 0, "the pool is meant to be too small"
        assert stats.counters.cached_tokens > 0
        assert sum(stats.counters.finished.values()) >= ROUNDS * REQUESTS
        assert sizes[-1] - sizes[2] < 32 * 2**20, "memory grows"
