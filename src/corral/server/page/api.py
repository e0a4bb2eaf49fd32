"""The page as a client of the server's own HTTP API: the models there are, and answers as they are made."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp

from corral.server.page.transport import AsgiTransport

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class ApiFailure(Exception):
    """What the server refused or could not do, in its own words.

    Args:
        message: the server's sentence.
        status: the HTTP status; 0 where an answer broke off.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True)
class ServedModel:
    """A model, or an adapter of one, that requests can name."""

    name: str
    parent: str | None = None
    context_length: int | None = None
    default_sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as a list of choices shows it."""
        return f"{self.name} (adapter of {self.parent})" if self.parent else self.name


class Api:
    """Calls to the server that the page is mounted in, for one person.

    Args:
        app: the server's application.
        key: that person's API key, or "" for none: the page has no rights of its own.
        client: that person's address.
    """

    def __init__(self, app: ASGIApp, key: str, client: tuple[str, int]) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(
            transport=AsgiTransport(app, client),
            base_url="http://localhost",
            headers=headers,
            timeout=None,
        )

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def models(self) -> list[ServedModel]:
        """What the server has to offer.

        Raises:
            ApiFailure: it refuses, for want of a key or because it is still loading.
        """
        response = await self._http.get("/v1/models")
        if response.status_code != 200:
            raise _refusal(response.status_code, response.content)
        return [_served(entry) for entry in response.json().get("data", [])]

    async def chunks(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of one streamed chat completion. Closing the iterator cancels the request.

        Raises:
            ApiFailure: the server refuses the request, or reports an error in mid-stream.
        """
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if error := chunk.get("error"):
                    raise ApiFailure(_words(error))
                yield chunk


def _served(entry: Mapping[str, Any]) -> ServedModel:
    """A model of the list. The fields beyond OpenAI's may be missing."""
    sampling = entry.get("default_sampling") or {}
    return ServedModel(
        name=entry["id"],
        parent=entry.get("parent"),
        context_length=entry.get("max_model_len"),
        default_sampling={name: sampling[name] for name in SAMPLING if sampling.get(name) is not None},
    )


def _refusal(status: int, content: bytes) -> ApiFailure:
    try:
        return ApiFailure(_words(json.loads(content)["error"]), status)
    except (ValueError, KeyError, TypeError):
        return ApiFailure(f"The server answered with HTTP status {status}.", status)


def _words(error: Any) -> str:
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        return str(error["message"])
    return str(error)
