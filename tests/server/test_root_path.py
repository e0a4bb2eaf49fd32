"""Behind a proxy that strips a prefix: routes, and the shapes of their errors, are those without it."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from corral.llm import LLM
from corral.server.app import build_app
from corral.server.service import Service


def _never() -> LLM:
    raise AssertionError("nothing here needs a model")


def _answer(path: str, body: object, root_path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        app = build_app(Service(_never, ["small"]))
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(root_path + path, json=body)

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/generate", "/", "/nothing"])
def test_an_error_has_its_interface_s_shape_below_a_prefix_too(path: str) -> None:
    plain, below = _answer(path, {}, ""), _answer(path, {}, "/llm")
    assert below.status_code == plain.status_code
    assert below.text == plain.text.replace(f"POST {path}", f"POST /llm{path}")
