"""What goes wrong with a request, and how each interface says it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corral.errors import CorralError, EngineBusyError, EngineError

logger = logging.getLogger(__name__)

# A field at the beginning of a sentence: "top_p is ...", "messages[2].content: ...".
_FIELD = re.compile(
    r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*)"
    r"(?=: |, | (?:is|has|holds|contradicts|cannot|uses|refers|takes|made) )"
)


_MOST_CHARACTERS = 1000  # of a message: it may quote what a client has sent


class ApiError(Exception):
    """An answer that is no success.

    Attributes:
        status: of HTTP.
        message: a sentence for the caller.
        param: the field of the request that is to blame.
        code: a word for programs, such as "model_not_found".
        retry_after: seconds after which the same request may do.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, _short(message), param, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What clients go by when they decide whether to try again."""
        headers = {"x-should-retry": "true" if self.status in (429, 503) else "false"}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def _short(message: str) -> str:
    half = _MOST_CHARACTERS // 2
    return message if len(message) <= _MOST_CHARACTERS else f"{message[:half]} ... {message[-half:]}"


def loading() -> ApiError:
    """The answer while the model is being loaded."""
    return ApiError(503, "the model is being loaded; try again soon", code="loading", retry_after=2)


def draining() -> ApiError:
    """The answer to what comes when the server is on its way down."""
    return ApiError(503, "the server is shutting down; ask another one", code="draining", retry_after=5)


def as_api_error(error: BaseException) -> ApiError:
    """The answer for an error. What is no user's mistake is logged, and answered without its details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusyError):
        return ApiError(429, str(error), code="engine_busy", retry_after=1.0)
    if isinstance(error, EngineError):
        logger.error("a request failed: %s", error, exc_info=error.__cause__)
        return ApiError(500, "the request failed in the engine", code="engine_error")
    if isinstance(error, CorralError):
        return ApiError(400, str(error), param=_param(str(error)))
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def _param(sentence: str) -> str | None:
    """The field that a sentence is about."""
    match = _FIELD.match(sentence)
    return None if match is None else match[1]


_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def openai_body(error: ApiError) -> dict[str, Any]:
    """As OpenAI's interface writes it, also in the middle of a stream."""
    kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """As Anthropic's interface writes it."""
    kinds = {408: "timeout_error", 413: "request_too_large", 503: "overloaded_error"}
    kind = kinds.get(error.status) or _OPENAI_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def tgi_body(error: ApiError) -> dict[str, Any]:
    """As TGI writes it: its clients go by `error_type`."""
    kinds = {408: "incomplete_generation", 429: "overloaded", 500: "generation", 503: "overloaded"}
    return {"error": error.message, "error_type": kinds.get(error.status, "validation")}


@dataclass(frozen=True)
class ErrorShape:
    """How an interface writes errors: their bodies, and where it has another status for them."""

    body: Callable[[ApiError], dict[str, Any]]
    statuses: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, error: ApiError) -> dict[str, Any]:
        return self.body(error)

    def status(self, error: ApiError) -> int:
        return self.statuses.get(error.status, error.status)


OPENAI = ErrorShape(openai_body)
ANTHROPIC = ErrorShape(anthropic_body)
TGI = ErrorShape(tgi_body, {400: 422, 500: 424})


@dataclass(frozen=True)
class ErrorShapes:
    """Which shape an error has on which route: the path's own, else that of its longest prefix."""

    by_prefix: Mapping[str, ErrorShape]
    by_path: Mapping[str, ErrorShape]

    def of(self, path: str) -> ErrorShape:
        if path in self.by_path:
            return self.by_path[path]
        prefixes = [prefix for prefix in self.by_prefix if path.startswith(prefix)]
        return self.by_prefix[max(prefixes, key=len)] if prefixes else OPENAI


SHAPES = ErrorShapes(
    {"/v1/messages": ANTHROPIC}, {"/": TGI, "/generate": TGI, "/generate_stream": TGI, "/info": TGI}
)


def sentences(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The answer to a body that has not the form that the route's schema asks for.

    `problems` are pydantic's. The first of those that lie deepest is told, with its place: where a value may
    have several forms, that is the form that it comes nearest to.
    """
    first = max(problems, key=lambda problem: len(problem["loc"]))
    place = [part for part in first["loc"] if part != "body"]
    path = _path(place)
    kind, message = first["type"], str(first["msg"])
    if isinstance(first.get("input"), bytes):  # the whole body, as it came
        return ApiError(400, "the body has another type than JSON; send content-type: application/json")
    if kind == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', message)}")
    if kind == "extra_forbidden":
        path = ".".join(filter(None, (_path(place[:-1]), str(place[-1])[:100] or "''")))
        return ApiError(400, f"{path} is no field that this server knows; remove it", param=path)
    if kind == "missing":
        return ApiError(400, f"{path or 'the body'} is missing", param=path or None)
    message = message.removeprefix("Value error, ")
    return ApiError(400, f"{path or 'the body'}: {message[:1].lower()}{message[1:]}", param=path or None)


def _path(place: Sequence[str | int]) -> str:
    """The path to a field as one writes it, without the names that pydantic gives to members of unions."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and not part[:1].isupper() and part not in ("str", "int", "list", "dict"):
            path += f".{part}" if path else part
    return path
