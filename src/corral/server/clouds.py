"""The routes by which clouds ask a container: Amazon SageMaker's, and Google Vertex AI's.

Their bodies are those of the other interfaces: a request is handed on, as it is, to the route for its body.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import Message, Receive, Scope, Send

from corral.errors import ConfigError
from corral.server.errors import ApiError
from corral.server.health import ready_response
from corral.server.ops.asgi import replay
from corral.server.ops.auth import OPEN
from corral.server.service import Service
from corral.server.sse import unless_gone
from corral.server.wire import dumps, json_response, loads

Fields = dict[str, Any]

# Which route a body is for, by the field that tells.
_TARGETS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "inputs": "/"}
ADAPTER_HEADER = "x-amzn-sagemaker-adapter-identifier"
MAX_INSTANCES = 64

_HEALTH_ENV, _PREDICT_ENV = "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"

_ROUTE = re.compile(r"(/[A-Za-z0-9_.:-]+)+")


@dataclass(frozen=True)
class Vertex:
    """The two routes that Vertex AI asks of a container."""

    health_route: str | None
    predict_route: str | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Vertex:
        """Reads the variables `AIP_HEALTH_ROUTE` and `AIP_PREDICT_ROUTE`.

        Raises:
            ConfigError: one of them has no meaning.
        """
        routes = [environ.get(name) or None for name in (_HEALTH_ENV, _PREDICT_ENV)]
        for name, route in zip((_HEALTH_ENV, _PREDICT_ENV), routes, strict=True):
            if route is not None and not _ROUTE.fullmatch(route):
                raise ConfigError(f"{name} is {route!r}; write a path like /predict")
        if routes[0] is not None and routes[0] == routes[1]:
            raise ConfigError(f"{_HEALTH_ENV} and {_PREDICT_ENV} are both {routes[0]!r}; give two paths")
        return cls(*routes)

    @property
    def open_paths(self) -> frozenset[str]:
        """Paths that need no key."""
        return frozenset() if self.health_route is None else frozenset({self.health_route})


NO_VERTEX = Vertex(None, None)


def add_clouds(app: FastAPI, service: Service, vertex: Vertex) -> None:
    """Adds SageMaker's routes, and Vertex AI's where `vertex` names them, to an app that has all others.

    Raises:
        ConfigError: the path for Vertex AI's health checks, which needs no key, is that of another route.
    """
    inner = Router(list(app.router.routes))
    for path in vertex.open_paths - OPEN:
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        if any(route.matches(scope)[0] is not Match.NONE for route in inner.routes):
            raise ConfigError(
                f"{_HEALTH_ENV} is {path!r}, where there is another route; take /health, or a new path"
            )
    router = APIRouter(tags=["Clouds"])

    async def ping() -> Response:
        return ready_response(service)

    async def invoke(request: HttpRequest) -> Response:
        fields = _with_adapter(_object(await request.body()), request.headers)
        return _HandedOn(inner, fields, _target(fields))

    async def predict(request: HttpRequest) -> Response:
        assert vertex.predict_route is not None, "this is its route"
        fields = _object(await request.body())
        if "instances" not in fields:
            # A raw prediction. A route that is there without Vertex AI stays what it is.
            there = any(route.matches(request.scope)[0] is Match.FULL for route in inner.routes)
            return _HandedOn(inner, fields, vertex.predict_route if there else _target(fields))
        bodies = _instances(fields)
        return await unless_gone(request, _predictions(inner, request.scope, bodies))

    router.add_api_route("/ping", ping, methods=["GET"], summary="Ready, for SageMaker")
    router.add_api_route("/invocations", invoke, methods=["POST"], summary="Ask, by SageMaker")
    if vertex.health_route is not None:
        router.add_api_route(vertex.health_route, ping, methods=["GET"], summary="Ready, for Vertex AI")
    if vertex.predict_route is not None:
        router.add_api_route(vertex.predict_route, predict, methods=["POST"], summary="Ask, by Vertex AI")
    own = len(app.router.routes)
    app.include_router(router)
    routes = app.router.routes
    routes[:] = routes[own:] + routes[:own]  # they go before those whose path they may have


class _HandedOn(Response):
    """An answer that the route gives for which a body is."""

    def __init__(self, inner: Router, fields: Fields, path: str) -> None:
        super().__init__()
        self._inner, self._path = inner, path
        self._given = dumps(fields).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inner(_inner_scope(scope, self._path), replay(self._given, receive), send)


def _object(body: bytes) -> Fields:
    try:
        fields = loads(body)
    except JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error.msg}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object")
    return fields


def _target(fields: Fields) -> str:
    """The path of the route that a body is for."""
    there = [name for name in _TARGETS if name in fields]
    if len(there) != 1:
        what = f"has {' and '.join(there)}" if there else "has none of them"
        raise ApiError(400, f"the body must have messages, a prompt, or inputs; it {what}")
    return _TARGETS[there[0]]


def _with_adapter(fields: Fields, headers: Mapping[str, str]) -> Fields:
    """A body with the adapter that SageMaker's header names."""
    name = headers.get(ADAPTER_HEADER)
    if not name:
        return fields
    if "inputs" not in fields:
        return {**fields, "model": _agreed(fields.get("model"), name)}
    parameters = fields.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ApiError(400, "parameters: it must be an object", param="parameters")
    return {**fields, "parameters": {**parameters, "adapter_id": _agreed(parameters.get("adapter_id"), name)}}


def _agreed(said: Any, name: str) -> str:
    if said not in (None, name):
        raise ApiError(400, f"{ADAPTER_HEADER}: the body names another adapter; leave one of them out")
    return name


def _instances(fields: Fields) -> list[Fields]:
    """Vertex AI's instances as bodies of requests."""
    unknown = next((name for name in fields if name not in ("instances", "parameters")), None)
    if unknown is not None:
        raise ApiError(400, f"{unknown[:100]} does not go with instances; remove it", param=unknown[:100])
    instances, shared = fields["instances"], fields.get("parameters") or {}
    if not isinstance(instances, list) or not 0 < len(instances) <= MAX_INSTANCES:
        sentence = f"instances: it must be a list of 1 to {MAX_INSTANCES} objects"
        raise ApiError(400, sentence, param="instances")
    if not isinstance(shared, dict):
        raise ApiError(400, "parameters: it must be an object", param="parameters")
    return [_instance(index, instance, shared) for index, instance in enumerate(instances)]


def _instance(index: int, instance: Any, shared: Fields) -> Fields:
    where = f"instances[{index}]"
    if not isinstance(instance, dict):
        raise ApiError(400, f"{where}: it must be an object", param=where)
    try:
        _target(instance)
    except ApiError as error:
        raise ApiError(400, error.message.replace("the body", where, 1), param=where) from None
    if instance.get("stream"):
        sentence = f"{where}.stream: predictions come in one piece; send one raw body to stream"
        raise ApiError(400, sentence, param=where)
    if "inputs" not in instance:
        return {**shared, **instance}
    own = instance.get("parameters") or {}
    return {**instance, "parameters": {**shared, **own} if isinstance(own, dict) else own}


async def _predictions(inner: Router, scope: Scope, bodies: list[Fields]) -> Response:
    """The answers to several bodies at once: texts for `inputs`, and whole completions otherwise.

    The first error is the answer. Where the task is cancelled, so are all requests.
    """
    gone = asyncio.Event()
    asking = [asyncio.ensure_future(_ask(inner, scope, fields, gone)) for fields in bodies]
    try:
        answers = await asyncio.gather(*asking)
    finally:
        gone.set()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    failed = next((answer for answer in answers if answer.status_code != 200), None)
    if failed is not None:
        return failed
    found = [json.loads(bytes(answer.body)) for answer in answers]
    return json_response({"predictions": [_prediction(answer) for answer in found]})


def _prediction(answer: Any) -> Any:
    return answer[0]["generated_text"] if isinstance(answer, list) and "details" not in answer[0] else answer


async def _ask(inner: Router, scope: Scope, fields: Fields, gone: asyncio.Event) -> Response:
    """One answer, collected."""
    messages: list[Message] = []

    async def wait() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(dict(message))

    await inner(_inner_scope(scope, _target(fields)), replay(dumps(fields).encode(), wait), send)
    start, *rest = messages
    body = b"".join(message.get("body", b"") for message in rest)
    answer = Response(body, start["status"])
    answer.raw_headers = list(start["headers"])
    return answer


def _inner_scope(scope: Scope, path: str) -> Scope:
    """The same exchange, with another route."""
    outer = ("endpoint", "route", "path_params", "router")
    kept = {name: value for name, value in scope.items() if name not in outer}
    return {**kept, "path": scope.get("root_path", "") + path, "raw_path": path.encode()}
