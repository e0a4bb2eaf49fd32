"""What the page opens to the network, and how it reaches the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from corral.server.page.api import Api, ApiFailure
from corral.server.page.guard import is_page_path
from corral.server.page.transport import AsgiTransport
from tests.server.page.page_server import PageServer

# Routes that Gradio has, and the page has no use for: files, uploads, proxies, descriptions, calls.
NOT_SERVED = [
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/file/etc/passwd"),
    ("GET", "/file=/etc/passwd"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
    ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/upload_progress"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/deep_link"),
    ("GET", "/gradio_api/custom_component/1/client/component/index.js"),
    ("POST", "/gradio_api/run/ask"),
    ("POST", "/gradio_api/call/ask"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"),
    ("POST", "/gradio_api/stream/1"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/monitoring"),
    ("POST", "/login"),
    ("GET", "/static/../../../etc/passwd"),
    ("GET", "/static/%2e%2e/%2e%2e/etc/passwd"),
    ("DELETE", "/gradio_api/queue/join"),
]
OTHERS = [
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/"),
    ("DELETE", "/"),
    ("GET", "/health"),
]


@pytest.mark.parametrize(("method", "path"), NOT_SERVED + OTHERS)
def test_only_what_the_page_needs_is_the_pages(method: str, path: str) -> None:
    assert not is_page_path(method, path)


@pytest.mark.parametrize(("method", "path"), NOT_SERVED)
def test_the_rest_of_gradio_is_behind_the_key_and_does_not_exist(
    locked_server: PageServer, method: str, path: str
) -> None:
    from tests.server.page.conftest import KEY

    url = f"{locked_server.base_url}{path}"
    assert httpx.request(method, url).status_code == 401
    answer = httpx.request(method, url, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code in (400, 404, 405), answer.text
    assert "root:" not in answer.text


def test_other_routes_keep_their_own_words(locked_server: PageServer) -> None:
    from tests.server.page.conftest import KEY

    headers = {"authorization": f"Bearer {KEY}"}
    for path, status in (("/v1/chat/completions", 405), ("/nowhere", 404)):
        answer = httpx.get(f"{locked_server.base_url}{path}", headers=headers)
        assert (answer.status_code, "error" in answer.json()) == (status, True)


def test_the_page_names_no_other_server_and_forbids_asking_one(locked_server: PageServer) -> None:
    answer = httpx.get(locked_server.base_url, timeout=120)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


def streaming_app(left: asyncio.Event) -> FastAPI:
    """Counts without end, until its client leaves."""
    app = FastAPI()

    @app.get("/count")
    async def count(request: Request) -> StreamingResponse:
        async def numbers() -> AsyncIterator[str]:
            number = 0
            try:
                while not await request.is_disconnected():
                    yield f"{number}\n"
                    number += 1
            finally:
                left.set()

        return StreamingResponse(numbers())

    @app.get("/client")
    async def client(request: Request) -> list[str | None]:
        seen = request.client
        return [seen.host if seen else None, request.headers.get("authorization")]

    @app.get("/v1/models")
    async def models() -> None:
        raise RuntimeError("broken")

    return app


def test_the_transport_streams_and_tells_the_application_that_its_client_left() -> None:
    async def run() -> list[str]:
        left = asyncio.Event()
        transport = AsgiTransport(streaming_app(left), ("192.0.2.7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/client", headers={"authorization": "x"})).json() == ["192.0.2.7", "x"]
            lines = []
            async with client.stream("GET", "/count") as response:
                async for line in response.aiter_lines():
                    lines.append(line)
                    if len(lines) == 500:
                        break
            await asyncio.wait_for(left.wait(), 10)
        return lines

    assert asyncio.run(run()) == [str(number) for number in range(500)]


def test_an_application_that_breaks_is_a_failure_in_words() -> None:
    async def run() -> None:
        async with Api(streaming_app(asyncio.Event()), "", ("127.0.0.1", 0)) as api:
            await api.models()

    with pytest.raises(ApiFailure, match="HTTP status 500"):
        asyncio.run(run())
