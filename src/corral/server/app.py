"""The application: all routes on one model."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

import corral
from corral.errors import CorralError
from corral.server.adapters import adapters_router
from corral.server.anthropic.messages import messages_router
from corral.server.clouds import NO_VERTEX, Vertex, add_clouds
from corral.server.errors import SHAPES, ApiError, as_api_error, sentences
from corral.server.health import health_router
from corral.server.openai.chat import chat_router
from corral.server.openai.completions import completions_router
from corral.server.openai.embeddings import embeddings_router
from corral.server.openai.models import models_router
from corral.server.openai.responses import responses_router
from corral.server.ops.asgi import local_path
from corral.server.service import Service
from corral.server.sse import ClientGoneError
from corral.server.tgi.generate import generate_router
from corral.server.tgi.info import info_router
from corral.server.tokenize import tokenize_router
from corral.server.wire import json_response

_ERRORS = (400, 401, 403, 404, 408, 413, 429, 500, 503)


def build_app(service: Service, vertex: Vertex = NO_VERTEX) -> FastAPI:
    """The routes of all interfaces on a model, with those that Vertex AI names.

    What belongs around them is `corral.server.ops`'.
    """
    responses = {status: {"description": "An error, in the shape of the interface"} for status in _ERRORS}
    app = FastAPI(
        title="Corral",
        version=corral.__version__,
        summary="One model, behind the interfaces of OpenAI, Anthropic and TGI",
        responses=responses,  # type: ignore[arg-type]
        docs_url=None,  # pages that would load scripts from elsewhere
        redoc_url=None,
    )
    routers = (
        chat_router,
        completions_router,
        responses_router,
        embeddings_router,
        models_router,
        health_router,
        messages_router,
        generate_router,
        info_router,
        tokenize_router,
        adapters_router,
    )
    for router in routers:
        app.include_router(router(service))
    add_clouds(app, service, vertex)
    _answer_errors(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error is an answer in the shape of its interface, without a traceback."""

    @app.exception_handler(ApiError)
    @app.exception_handler(CorralError)
    @app.exception_handler(Exception)
    async def failed(request: HttpRequest, error: Exception) -> Response:
        return _answer(request, as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: HttpRequest, error: RequestValidationError) -> Response:
        return _answer(request, sentences(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: HttpRequest, error: HTTPException) -> Response:
        message = {404: "there is no such route", 405: "this route takes another method"}
        text = message.get(error.status_code, str(error.detail))
        answer = _answer(
            request, ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {text}")
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientGoneError)
    async def gone(_request: HttpRequest, _error: ClientGoneError) -> Response:
        return Response(status_code=499)


def _answer(request: HttpRequest, error: ApiError) -> Response:
    shape = SHAPES.of(local_path(request.scope))
    return json_response(shape(error), shape.status(error), error.headers)
