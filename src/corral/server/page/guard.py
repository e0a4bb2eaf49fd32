"""What of Gradio's routes the page needs; the others are not served.

Gradio can serve files, take uploads, proxy addresses and describe its functions. The page uses none of that.
"""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.server.ops.asgi import local_path

_READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:static|assets|svelte)/[\w./@+-]+"
    r"|/gradio_api/(?:queue/data|startup-events|heartbeat/\w+|app_id)"
)
_WRITE = re.compile(r"/gradio_api/(?:queue/join|cancel|reset)")

# No script, style, picture, font or connection from elsewhere: what a model writes cannot send anything away.
# Gradio puts its configuration into inline scripts, and compiles templates of its components.
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    ]
)


def is_page_path(method: str, path: str) -> bool:
    """Whether a request is one of those that the page in a browser makes, which need no API key."""
    if ".." in path:
        return False
    allowed = _READ if method in ("GET", "HEAD") else _WRITE if method == "POST" else None
    return allowed is not None and allowed.fullmatch(path) is not None


class PageMount(Mount):
    """A mounted Gradio application: only the page's routes, under a policy that keeps it to this server.

    Other paths are left to the other routes of the server, and so to its own words for what does not exist.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__("/", app=_with_policy(app), name="chat page")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or not is_page_path(scope["method"], local_path(scope)):
            return Match.NONE, {}
        return super().matches(scope)


def _with_policy(app: ASGIApp) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _POLICY
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
            await send(message)

        await app(scope, receive, send_guarded)

    return guarded
