"""The page as a Gradio application, its events connected."""

from __future__ import annotations

import os
from importlib import resources
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from corral.server.page.events import Events
from corral.server.page.layout import Parts, build_parts
from corral.server.page.style import theme

_ICON = (
    '<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 '
    'viewBox=%220 0 16 16%22%3E%3Cpath d=%22M8 1l7 7-7 7-7-7z%22 fill=%22%23b8562b%22/%3E%3C/svg%3E">'
)
_MAX_WAITING = 1024  # events of all open pages
_MAX_RUNNING = 256  # of them, at a time: most wait for tokens


def build_app(api: ASGIApp, title: str) -> FastAPI:
    """An application that serves the page at `/`, with everything off that the page does not need.

    Args:
        api: what answers the page's requests.
        title: of the browser's tab.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Gradio sums up its last 10,000 events after each one, in the event loop; nobody looks at that here.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(api, title),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
        theme=theme(),
        head=_head(),
    )
    return app


def _head() -> str:
    """The page's own style and script. Gradio's own parameter for CSS reaches only its main column."""
    files = resources.files("corral.server.page")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    return f"{_ICON}<style>{style}</style><script>{script}</script>"


def build_page(api: ASGIApp, title: str) -> gr.Blocks:
    """The page, with its events."""
    page: gr.Blocks
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, fill_width=True) as page:
        parts = build_parts()
        _wire(page, parts, Events(api, parts))
    page.max_threads = _MAX_RUNNING
    page.queue(api_open=False, max_size=_MAX_WAITING, default_concurrency_limit=None)
    return page


def _wire(page: gr.Blocks, parts: Parts, events: Events) -> None:
    """Connect components and events. Scripts named `corral.…` are in page.js."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    kept, served, key = parts.kept, parts.served, parts.key
    chat_view = [kept, parts.chat, parts.title, parts.results, parts.call, parts.box]
    view = [*chat_view, *parts.settings()]
    server = [served, parts.notice, key, parts.retry_loading]
    asked = [kept, served, key, *parts.settings()]

    page.load(
        events.open_page, [kept, key], [*view, *server], js="() => [corral.start(), corral.key()]", **quiet
    )
    connected = [*parts.settings(), *server]
    last: dict[str, Any] = {"trigger_mode": "always_last", **quiet}
    for entered in (key.submit, key.blur):
        entered(
            events.connect, [kept, key], connected, js="(kept, key) => [kept, corral.keepKey(key)]", **last
        )
    parts.retry_loading.tick(events.connect, [kept, key], connected, **quiet)

    # "multiple": Gradio would else swallow what is sent before it has noted the end of the answer before.
    answers: dict[str, Any] = {"outputs": [*chat_view, parts.result], "trigger_mode": "multiple", **quiet}
    parts.box.submit(events.ask, [parts.box, *asked], **answers)
    parts.chat.retry(events.regenerate, asked, **answers)
    parts.chat.edit(events.edit, asked, **answers)
    parts.result.submit(events.give_result, [parts.result, *asked], **answers)
    parts.give_result.click(events.give_result, [parts.result, *asked], **answers)
    parts.chat.undo(events.undo, kept, chat_view, **quiet)
    parts.box.stop(events.stop, None, None, **quiet)
    page.unload(events.stop)

    kept.change(events.list_chats, kept, parts.chats, js="(kept) => corral.keep(kept)", **quiet)
    chosen = parts.chats.input(None, parts.chats, parts.chosen, js="(id) => corral.open(id)", **last)
    chosen.then(events.open_chat, [parts.chosen, served], view, **last)
    _wire_menus(parts, events, view, quiet)


def _wire_menus(parts: Parts, events: Events, view: list[Any], quiet: dict[str, Any]) -> None:
    kept, served = parts.kept, parts.served
    parts.new.click(
        events.open_chat, [kept, served], view, js="(kept, served) => [corral.blank(kept), served]", **quiet
    )
    parts.delete.click(
        events.open_chat, [kept, served], view, js="(kept, served) => [corral.remove(kept), served]", **quiet
    )
    parts.title.submit(events.rename, [parts.title, kept], [kept, parts.title], **quiet)
    parts.title.blur(events.rename, [parts.title, kept], [kept, parts.title], **quiet)
    parts.dark.click(None, js="() => corral.toggleDark()", **quiet)

    sampling = parts.sampling.components()
    settings = [kept, served, *parts.settings()]
    for component in parts.settings():
        component.input(events.keep_settings, settings, kept, trigger_mode="always_last", **quiet)
    reset = parts.reset.click(events.default_sampling, [parts.model, served], sampling, **quiet)
    reset.then(events.keep_settings, settings, kept, **quiet)
    _wire_files(parts, events, view, quiet)


def _wire_files(parts: Parts, events: Events, view: list[Any], quiet: dict[str, Any]) -> None:
    """Files are made and read in the browser: none is uploaded to the server or stored there."""
    for button, export in (
        (parts.export_markdown, events.export_markdown),
        (parts.export_json, events.export_json),
    ):
        button.click(export, parts.kept, parts.file, **quiet).then(
            None, parts.file, None, js="(file) => corral.download(file)", **quiet
        )
    parts.export_all.click(None, js="() => corral.downloadAll()", **quiet)
    imported = parts.import_file.click(
        events.import_file, parts.file, parts.file, js="async () => await corral.pick()", **quiet
    )
    imported.then(
        events.open_chat,
        [parts.file, parts.served],
        view,
        js="(found, served) => [corral.take(found), served]",
        **quiet,
    )
