"""JSON as it goes over the wire."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import Response


class Body(BaseModel):
    """A part of a request's body: what it does not know is refused, and no type is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True)


def dumps(value: Any) -> str:
    """Compact JSON in ASCII: any text can be written so, also half a surrogate pair from a model's call."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(dumps(value).encode(), status, dict(headers or {}), "application/json")


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold: -9999 for a token that cannot come, as OpenAI writes it."""
    return logprob if math.isfinite(logprob) else -9999.0
