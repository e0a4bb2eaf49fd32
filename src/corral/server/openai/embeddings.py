"""`/v1/embeddings`, which is refused: the model behind this server generates text."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from corral.server.errors import ApiError
from corral.server.service import Service


def embeddings_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/embeddings", summary="Refused: this server gives no embeddings")
    async def refuse() -> Response:
        raise ApiError(
            400,
            f"{service.names[0]} generates text and gives no embeddings; ask an embedding model's server",
            param="model",
            code="embeddings_not_supported",
        )

    return router
