"""`/info`: what runs here, in TGI's words."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

import corral
from corral.engine.sampling.params import MAX_STOP_STRINGS
from corral.server.service import Service
from corral.server.wire import json_response


def info_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["TGI"])

    @router.get("/info", summary="Look at the model and its bounds")
    async def info() -> Response:
        llm = service.llm
        bounds = llm.engine.config
        return json_response(
            {
                "model_id": service.names[0],
                "model_sha": None,
                "model_dtype": str(llm.network.dtype),
                "model_device_type": llm.network.device.type,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": bounds.max_num_seqs + bounds.max_waiting_requests,
                "max_best_of": bounds.max_num_seqs,
                "max_stop_sequences": MAX_STOP_STRINGS,
                "max_input_tokens": llm.max_model_len - 1,
                "max_total_tokens": llm.max_model_len,
                "max_batch_size": bounds.max_num_seqs,
                "validation_workers": 1,
                "max_client_batch_size": 1,
                "router": "corral",
                "version": corral.__version__,
                "sha": None,
                "docker_label": None,
            }
        )

    return router
