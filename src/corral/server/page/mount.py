"""Putting the page into the server. Gradio takes seconds to import: that waits for the first visitor."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.errors import ConfigError
from corral.server.page.guard import PageMount


def mount_page(app: FastAPI, *, api: ASGIApp) -> None:
    """Serve the chat page at `/`.

    The page's own routes, which `corral.server.page.guard.is_page_path` tells from others, need no key and
    give nothing but the page: what it asks of a model goes through `api`, with the key that its user entered.

    Args:
        app: the server's application.
        api: what answers the page's requests: `app` with the pieces around it.

    Raises:
        ConfigError: Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the chat page needs Gradio, which is not installed: pip install 'corral[ui]'")

    def build() -> FastAPI:
        from corral.server.page.build import build_app

        return build_app(api, "Corral")

    app.router.routes.append(PageMount(_OnFirstUse(build)))


class _OnFirstUse:
    """An application that is built, in a thread, when it is first asked for something."""

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self._build = build
        self._building: asyncio.Task[FastAPI] | None = None
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._building is None:
            self._building = asyncio.create_task(self._start())
        app = await asyncio.shield(self._building)
        await app(scope, receive, send)

    async def _start(self) -> FastAPI:
        app = await asyncio.to_thread(self._build)
        started = asyncio.Event()
        self._running = asyncio.create_task(_run(app, started))
        await started.wait()
        return app


async def _run(app: FastAPI, started: asyncio.Event) -> None:
    """The life of an application: it ends when the event loop ends, and this task with it."""
    async with app.router.lifespan_context(app):
        started.set()
        await asyncio.Event().wait()
