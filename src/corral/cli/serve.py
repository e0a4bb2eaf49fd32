"""`corral serve`: a model behind HTTP."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import options
from corral.cli.serve_config import use_config
from corral.cli.serve_options import Address, Keys, Limits, Observability, Served
from corral.errors import ConfigError

if TYPE_CHECKING:
    from socket import socket

    from starlette.types import ASGIApp

    from corral.llm import LLM
    from corral.server.ops.keys import ApiKey
    from corral.server.ops.operations import Operations
    from corral.server.service import Service
    from corral.server.settings import ServerSettings

_MAX_WAITING = 512

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML with the names of these options; a flag goes before it.",
        callback=use_config,
        is_eager=True,
        show_default=False,
    ),
]


@options.grouped
def serve(
    model: options.Model = options.DEFAULT,
    config: Config = None,  # noqa: ARG001  # its callback has made it the others' defaults
    served: Served = Served(),
    address: Address = Address(),
    keys: Keys = Keys(),
    limits: Limits = Limits(),
    observability: Observability = Observability(),
    running: options.Running = options.Running(),
) -> None:
    """Serve a model over HTTP: the interfaces of OpenAI, Anthropic and TGI, and a chat page.

    The port is open at once; `/ready` says when the model is loaded. SIGTERM lets running requests end.

    **Examples**

        corral serve
        corral serve llama-3.1-8b-instruct --host 0.0.0.0 --api-key-file keys.txt
        corral serve --config serve.yaml --port 9000
    """
    status = _serve(_settings(model, served, address, keys, limits, observability, running))
    if status is not None:  # a thread that cannot be stopped would hold up the end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _settings(
    model: str,
    served: Served,
    address: Address,
    keys: Keys,
    limits: Limits,
    observability: Observability,
    running: options.Running,
) -> ServerSettings:
    """The settings that the options ask for.

    Raises:
        CorralError: one of them cannot be used; the message names it.
    """
    from corral.server.settings import ServerSettings

    named = {f.name for f in fields(ServerSettings)}
    given = {**vars(served), **vars(address), **vars(keys), **vars(limits), **vars(observability)}
    plain = {name: value for name, value in given.items() if name in named and value is not None}
    for name in ("max_body", "max_header_bytes"):
        if name in plain:
            plain[name] = options.parse_size(f"--{name.replace('_', '-')}", plain[name])
    return ServerSettings(
        **{
            **plain,
            "model": model,
            "dtype": running.dtype,
            "device": running.device,
            "served_model_name": tuple(served.served_model_name or ()),
            "adapters": _adapters(served.adapter or []),
            "engine": _engine(served, limits, running),
            "cors_origins": tuple(address.cors_origin or ()),
            "api_keys": _keys("key", keys.api_key or [], "line", keys.api_key_file),
            "admin_keys": _keys("admin", keys.admin_key or [], "admin-line", keys.admin_key_file),
            **({"trusted_proxies": tuple(address.trusted_proxy)} if address.trusted_proxy else {}),
        }
    )


def _serve(settings: ServerSettings) -> int | None:
    """Runs the server; gives an exit status where the process must be ended by force."""
    from corral.server.ops.listen import check_certificate, listen

    check_certificate(settings.tls_cert, settings.tls_key)
    bound = listen(settings)
    _say_where(settings, bound)
    from corral.server.ops.operations import Operations
    from corral.server.ops.process import ServerProcess
    from corral.server.ops.request_log import logging_to
    from corral.server.service import Service

    with logging_to(sys.stdout, settings.log_format):
        operations = Operations(settings)
        service = Service(
            lambda: _load(settings),
            settings.names,
            telemetry=operations,
            request_timeout=settings.request_timeout,
            adapters_dir=settings.adapters_dir,
        )
        operations.watch(service)
        app = _app(settings, service, operations)
        process = ServerProcess(app, service, operations, bound, _say_ready)
        process.run()
    return 0 if process.still_loads else None


def _app(settings: ServerSettings, service: Service, operations: Operations) -> ASGIApp:
    """All routes, the page where it can be, and the stack around them."""
    from corral.server.app import build_app
    from corral.server.clouds import Vertex
    from corral.server.ops.auth import no_page
    from corral.server.ops.stack import wrap

    vertex = Vertex.from_environ(os.environ)
    routes = build_app(service, vertex)
    if not (settings.page and find_spec("gradio")):
        return wrap(routes, operations, service, open_paths=vertex.open_paths, is_page=no_page)
    from corral.server.page.guard import is_page_path
    from corral.server.page.mount import mount_page

    app = wrap(routes, operations, service, open_paths=vertex.open_paths, is_page=is_page_path)
    mount_page(routes, api=app)
    return app


def _load(settings: ServerSettings) -> LLM:
    return options.load_model(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        prompt_format=settings.prompt_format,
        adapters=settings.adapters,
        **settings.engine,
    )


def _say_where(settings: ServerSettings, bound: socket) -> None:
    from corral.server.ops.listen import address_of

    _say(f"Corral is loading {settings.model}; it will answer on {address_of(settings, bound)}")
    if not (settings.is_local or settings.api_keys):
        _say(
            f"warning: anyone who can reach {settings.host} can use this server; "
            "give it keys with --api-key-file, or listen on 127.0.0.1"
        )


def _say_ready(llm: LLM) -> None:
    stats = llm.engine.stats()
    _say(
        f"ready in {_seconds_since_start():.1f} s: {llm.name}, context of {llm.max_model_len:,} tokens, "
        f"KV cache for {stats.capacity:,} tokens"
    )


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _seconds_since_start() -> float:
    """How old this process is."""
    try:
        begun = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()


def _engine(served: Served, limits: Limits, running: options.Running) -> dict[str, Any]:
    given = {
        **running.engine_options(),
        "max_num_seqs": served.max_num_seqs,
        "kv_cache_memory": options.parse_size("--kv-cache-memory", served.kv_cache_memory),
        "max_waiting_requests": limits.max_waiting_requests,
        "max_waiting_tokens": limits.max_waiting_tokens,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    return {"max_waiting_requests": _MAX_WAITING, **asked}


def _adapters(given: list[str]) -> dict[str, Path]:
    adapters: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (equals and name and folder):
            raise ConfigError(f"--adapter is {text!r}; write it like NAME=FOLDER")
        if name in adapters:
            raise ConfigError(f"--adapter: two adapters are called {name!r}")
        adapters[name] = Path(folder)
    return adapters


def _keys(name: str, given: list[str], line_name: str, path: Path | None) -> tuple[ApiKey, ...]:
    from corral.server.ops.keys import ApiKey, read_key_file

    keys = [ApiKey.of(f"{name}-{number}", text) for number, text in enumerate(given, 1)]
    return (*keys, *(read_key_file(path, prefix=line_name) if path is not None else ()))
