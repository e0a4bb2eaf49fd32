"""`/v1/models`: the model and its adapters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from corral.server.service import Service
from corral.server.wire import json_response

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def models_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models", summary="List the model and its adapters")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": model_cards(service)})

    @router.get("/v1/models/{model:path}", summary="Look at a model or an adapter")
    async def get_model(model: str) -> Response:
        card = next((card for card in model_cards(service) if card["id"] == model), None)
        if card is None:
            raise service.unknown_model(model)
        return json_response(card)

    return router


def model_cards(service: Service) -> list[dict[str, Any]]:
    """What there is to be asked, the model first."""
    llm = service.llm
    defaults = asdict(llm.default_sampling_params())
    base = {
        "object": "model",
        "created": service.created,
        "owned_by": "corral",
        "root": service.names[0],
        "max_model_len": llm.max_model_len,
        "default_sampling": {name: defaults[name] for name in _DEFAULTS},
    }
    models = [{"id": name, **base, "parent": None} for name in service.names]
    adapters = [{"id": name, **base, "parent": service.names[0]} for name in llm.engine.adapters]
    return models + adapters
