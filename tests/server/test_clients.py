"""Libraries that people use, and what they do when a server is busy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI, RateLimitError

from corral.model.presets import DEFAULT_MODEL
from tests.server.live_server import LiveServer
from tests.server.processes import serving

COUNT: Any = [{"role": "user", "content": "Count to three."}]


def test_langchain_answers_streams_calls_and_fills_schemas(server: LiveServer) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel, Field

    class Weather(BaseModel):
        """The weather in a city."""

        city: str = Field(description="A city.", max_length=20)

    fields: Any = {"base_url": f"{server.base_url}/v1", "api_key": "none", "model": DEFAULT_MODEL}
    chat: Any = ChatOpenAI(**fields, temperature=0, max_completion_tokens=60)
    whole = chat.invoke("Count to three.")
    assert whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream("Count to three.")) == whole.content
    called = chat.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False).invoke(
        "Weather in Paris?"
    )
    assert called.tool_calls[0]["name"] == "Weather"
    assert isinstance(called.tool_calls[0]["args"]["city"], str)
    filled = chat.with_structured_output(Weather, method="json_schema").invoke("Weather in Paris?")
    assert isinstance(filled, Weather)


def test_a_busy_server_is_asked_again_and_then_answers(tmp_path: Path) -> None:
    """The queue is full for most of these; their client waits as it is told, and tries again."""
    with serving(tmp_path, "--max-num-seqs", "1", "--max-waiting-requests", "1", "--metrics-open") as server:

        async def all_of_them() -> list[Any]:
            client = AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=20)
            fields: Any = {"model": DEFAULT_MODEL, "messages": COUNT, "max_tokens": 100}
            extra = {"ignore_eos": True}
            ask = client.chat.completions.create
            return await asyncio.gather(*(ask(**fields, extra_body=extra) for _ in range(8)))

        answers = asyncio.run(all_of_them())
        assert all(answer.usage.completion_tokens == 100 for answer in answers)
        metrics = httpx.get(f"{server.base_url}/metrics").text
        (rejected,) = [
            line for line in metrics.splitlines() if line.startswith("corral_requests_rejected_total{")
        ]
        assert float(rejected.split()[-1]) > 0


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, "--requests-per-minute", "2") as server:
        client = OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)

        def ask() -> Any:
            return client.chat.completions.create(model=DEFAULT_MODEL, messages=COUNT, max_tokens=1)

        ask()
        ask()
        with pytest.raises(RateLimitError) as caught:
            ask()
        headers = caught.value.response.headers
        assert int(headers["retry-after"]) >= 1
        assert headers["x-should-retry"] == "true"
        assert headers["x-ratelimit-limit-requests"] == "2"
