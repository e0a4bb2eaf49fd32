"""A browser, and servers with a page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.llm import LLM
from corral.model.presets import DEFAULT_MODEL
from tests.checkpoints.writers import write_chat_model
from tests.server.page.chat_page import WAIT_MS, ChatPage
from tests.server.page.page_server import PageServer, page_server

KEY = "sesame-0123456789"
OpenPage = Callable[..., ChatPage]


def chromium_path() -> str | None:
    """A Chromium on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# For a module alone: Playwright has an event loop run in this thread, in which others start theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for which there is no network but loopback."""
    path = chromium_path()
    if path is None:
        pytest.skip("there is no Chromium: install the package chromium")
    api = pytest.importorskip("playwright.sync_api", reason="there is no Playwright: pip install playwright")
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[PageServer]:
    """The default model with its page."""
    with page_server(LLM(str(smollm2_path), threads=1), DEFAULT_MODEL) as running:
        yield running


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A small model with random weights, for those who have the key."""
    folder = tmp_path_factory.mktemp("small")
    write_chat_model(folder)
    with page_server(LLM(str(folder), threads=1), "small", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One profile for all tests: the page's own files are fetched once."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def open_page(context: Any) -> Iterator[OpenPage]:
    """Opens the page of a server, with nothing kept from before; nothing may go wrong, or elsewhere."""
    pages: list[Any] = []
    wrong: list[str] = []

    def watch(page: Any, base_url: str) -> None:
        def requested(request: Any) -> None:
            if not request.url.startswith((f"{base_url}/", "data:", "blob:")):
                wrong.append(f"a request to {request.url}")

        def answered(response: Any) -> None:
            if response.status >= 400:
                wrong.append(f"{response.status} for {response.url}")

        page.on("request", requested)
        page.on("response", answered)
        page.on("pageerror", lambda error: wrong.append(f"an error in the page: {error}"))

    def open_as_new(
        server: PageServer, width: int = 1400, height: int = 900, color_scheme: str = "light"
    ) -> ChatPage:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=color_scheme)
        if not pages:
            page.goto(f"{server.base_url}/theme.css", timeout=WAIT_MS)
            page.evaluate("localStorage.clear()")
        pages.append(page)
        watch(page, server.base_url)
        page.goto(server.base_url, timeout=WAIT_MS)
        chat = ChatPage(page)
        chat.loaded()
        return chat

    yield open_as_new
    for page in pages:
        page.close()
    assert not wrong
