"""The whole server with its page, in a thread of the tests' own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from corral.llm import LLM
from corral.server.app import build_app
from corral.server.ops.keys import ApiKey
from corral.server.ops.operations import Operations
from corral.server.ops.stack import wrap
from corral.server.page.guard import is_page_path
from corral.server.page.mount import mount_page
from corral.server.service import Service
from corral.server.settings import ServerSettings
from tests.server.live_server import serving_in_thread


@dataclass(frozen=True)
class PageServer:
    """A server that runs. `base_url` has no slash at the end."""

    base_url: str
    service: Service

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, and no block of the cache is held."""
        return not self.service.num_running and not self.service.llm.engine.stats().blocks_used


@contextmanager
def page_server(llm: LLM, name: str, key: str | None = None) -> Iterator[PageServer]:
    """A model behind all of the server's pieces, and its page."""
    settings = ServerSettings(api_keys=(ApiKey.of("someone", key),) if key else ())
    operations = Operations(settings)
    service = Service(lambda: llm, [name], telemetry=operations)
    operations.watch(service)
    service.load()
    inner = build_app(service)
    app = wrap(inner, operations, service, is_page=is_page_path)
    mount_page(inner, api=app)
    try:
        with serving_in_thread(app, timeout_graceful_shutdown=1) as (base_url, _):
            yield PageServer(base_url, service)
    finally:
        service.close()
        operations.close()
