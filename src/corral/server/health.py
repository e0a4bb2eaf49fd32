"""Whether the server is alive, and whether it may be asked."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

import corral
from corral.server.service import Service
from corral.server.wire import json_response


def health_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Health"])

    @router.get("/health", summary="Alive")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @router.get("/ready", summary="Ready for requests")
    async def ready() -> Response:
        return ready_response(service)

    @router.get("/version", summary="Corral's version")
    async def version() -> Response:
        return json_response({"version": corral.__version__})

    return router


def ready_response(service: Service) -> Response:
    """The state of the service: with 200 where it may be asked, with 503 otherwise."""
    state = service.state
    return json_response({"status": state}, 200 if state == "ready" else 503)
