"""JSON as it goes over the wire."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from json import JSONDecodeError
from typing import Annotated, Any, TypeVar

from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

T = TypeVar("T")


class Body(BaseModel):
    """A part of a request's body: what it does not know is refused, and no type is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, given: Any) -> Any:
        """Drops keys of an object that has too many: one of the rest is unknown too, and one is told."""
        most = len(cls.model_fields) + 1
        return dict(islice(given.items(), most)) if isinstance(given, dict) and len(given) > most else given


# A list that is refused at its first wrong entry: to describe 100,000 of them takes seconds.
Many = Annotated[list[T], Field(fail_fast=True)]


# Beyond these, dividing logits by it may give what no float holds.
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]


def loads(body: bytes) -> Any:
    """What a body holds. Python's own reader would take NaN, and infinity where a number is too large.

    Raises:
        JSONDecodeError: it is no JSON, or a number in it cannot be held.
    """
    try:
        return json.loads(body, parse_constant=_no_number, parse_float=_finite)
    except JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise JSONDecodeError("it is not UTF-8", "", 0) from None
    except RecursionError:
        raise JSONDecodeError("it is nested too deeply", "", 0) from None
    except ValueError:  # Python's bound on the digits of a whole number
        raise JSONDecodeError("a number in it has too many digits", "", 0) from None


def _no_number(text: str) -> Any:
    raise JSONDecodeError(f"{text} is no number", "", 0)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JSONDecodeError(f"{text[:40]} is too large for a number", "", 0)
    return value


class _JsonRequest(HttpRequest):
    async def json(self) -> Any:
        return loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose bodies `loads` reads."""

    def get_route_handler(self) -> Callable[[HttpRequest], Awaitable[Response]]:  # type: ignore[override]
        answer = super().get_route_handler()

        async def answer_json(request: HttpRequest) -> Response:
            return await answer(_JsonRequest(request.scope, request.receive))

        return answer_json


def dumps(value: Any) -> str:
    """Compact JSON in ASCII: any text can be written so, also half a surrogate pair from a model's call."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(dumps(value).encode(), status, dict(headers or {}), "application/json")


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold: -9999 for a token that cannot come, as OpenAI writes it."""
    return logprob if math.isfinite(logprob) else -9999.0
