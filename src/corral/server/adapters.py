"""LoRA adapters, loaded and unloaded while the server runs."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from corral.checkpoints.adapter_config import ADAPTER_CONFIG
from corral.errors import CorralError, RequestError
from corral.server.errors import ApiError
from corral.server.service import ANY_MODEL, Service
from corral.server.wire import Body, JsonRoute, json_response

logger = logging.getLogger(__name__)

LOAD_PATH, UNLOAD_PATH = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADMIN_PATHS = frozenset({LOAD_PATH, UNLOAD_PATH})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class LoadBody(Body):
    """An adapter to be loaded."""

    lora_name: str = Field(description="What requests call it: letters, digits and . _ -")
    lora_path: str = Field(
        max_length=1000, description="Its folder below that of the server, as team/style-1"
    )


class UnloadBody(Body):
    """An adapter to be unloaded."""

    lora_name: str


def adapters_router(service: Service) -> APIRouter:
    """The routes. They belong under an admin key: `ADMIN_PATHS`."""
    router = APIRouter(tags=["Adapters"], route_class=JsonRoute)

    @router.post(LOAD_PATH, summary="Load an adapter")
    async def load(body: LoadBody) -> Response:
        engine = service.llm.engine
        _check_name(service, body.lora_name)
        await service.in_thread(lambda: _load(service, body))
        logger.info("adapter %s has been loaded", body.lora_name)
        return json_response({"status": "loaded", "lora_name": body.lora_name, "adapters": engine.adapters})

    @router.post(UNLOAD_PATH, summary="Unload an adapter")
    async def unload(body: UnloadBody) -> Response:
        engine, name = service.llm.engine, body.lora_name
        if name not in engine.adapters:
            raise _not_loaded(name)
        try:
            await service.in_thread(lambda: engine.unload_adapter(name))
        except RequestError as error:
            if name not in engine.adapters:
                raise _not_loaded(name) from None
            raise ApiError(409, str(error), param="lora_name", code="adapter_in_use") from None
        logger.info("adapter %s has been unloaded", name)
        return json_response({"status": "unloaded", "lora_name": name, "adapters": engine.adapters})

    return router


def _not_loaded(name: str) -> ApiError:
    message = f"lora_name: no adapter {name[:100]!r} is loaded"
    return ApiError(404, message, param="lora_name", code="adapter_not_found")


def _check_name(service: Service, name: str) -> None:
    if not _NAME.fullmatch(name):
        sentence = "lora_name: up to 100 letters, digits and . _ - are a name; the first is a letter or digit"
        raise ApiError(400, sentence, param="lora_name")
    if name in (*service.names, *ANY_MODEL):
        raise ApiError(409, f"lora_name: {name!r} is a name of the model; choose another", param="lora_name")
    if name in service.llm.engine.adapters:
        sentence = f"lora_name: an adapter {name!r} is loaded already; unload it first"
        raise ApiError(409, sentence, param="lora_name", code="adapter_exists")


def _load(service: Service, body: LoadBody) -> None:
    folder = adapter_folder(service.adapters_dir, body.lora_path)
    try:
        service.llm.engine.load_adapter(body.lora_name, folder)
    except RequestError:
        _check_name(service, body.lora_name)  # another request was faster
        raise
    except CorralError as error:
        logger.warning("adapter %s cannot be loaded: %s", body.lora_name, error)
        sentence = f"lora_path: {_without(str(error), folder)}"
        raise ApiError(400, sentence, param="lora_path", code="adapter_unusable") from None


def adapter_folder(root: Path | None, path: str) -> Path:
    """The folder that `path` means below `root`, with all links followed.

    The answer is the same whether nothing is there, or something that may not be loaded.

    Raises:
        ApiError: there is none that may be loaded.
    """
    if root is None:
        sentence = "this server loads no adapters while it runs; start it with --adapters-dir"
        raise ApiError(403, sentence, code="adapters_fixed")
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        sentence = "lora_path: write names of folders, with / between them, of letters, digits and . _ - only"
        raise ApiError(400, sentence, param="lora_path")
    try:
        home = root.resolve(strict=True)
        folder = (home / path).resolve(strict=True)
        places = (folder, folder / ADAPTER_CONFIG, *folder.iterdir())
        inside = all(place.resolve(strict=True).is_relative_to(home) for place in places)
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        raise ApiError(404, "lora_path: no adapter is there", param="lora_path", code="adapter_not_found")
    return folder


def _without(sentence: str, folder: Path) -> str:
    """A sentence about files, without where they are."""
    told = sentence.replace(f"{folder}/", "").replace(str(folder), "the adapter")
    return "the adapter cannot be read; the server's log says why" if str(folder.parent) in told else told
