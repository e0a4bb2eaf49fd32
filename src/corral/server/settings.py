"""The settings of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from corral.engine.sampling.checks import require_flag, require_number, require_whole
from corral.errors import ConfigError
from corral.model.presets import DEFAULT_MODEL
from corral.server.ops.keys import ApiKey, check_keys

LOG_FORMATS = ("text", "json")
_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class ServerSettings:
    """What can be set about a server. Sizes are in bytes, times in seconds.

    Attributes:
        model, dtype, device, prompt_format, adapters, engine: as `corral.llm.LLM` takes them.
        served_model_name: the names under which clients ask for the model; its own without any.
        adapters_dir: adapters may be loaded from this folder while the server runs; from none without it.
        host, port: where it listens; port 0 takes a free one.
        root_path: the prefix that a proxy strips from paths.
        trusted_proxies: addresses whose `X-Forwarded-For` and `-Proto` are believed.
        api_keys, admin_keys: see `corral.server.ops.auth`.
        cors_origins: web pages of these origins may ask; "*" is all.
        tls_cert, tls_key: PEM files; both or none.
        max_body, max_json_depth, max_json_items, body_timeout: of a request's body.
        max_headers, max_header_bytes, header_timeout: of its head.
        max_connections: open ones; further ones are closed at once with 503.
        keep_alive: how long an idle connection stays open.
        request_timeout: the longest that a request may take; clients can only ask for less.
        max_concurrent_per_key, requests_per_minute: of one key, or of one address where there are no keys.
        grace_seconds: how long running requests may go on after SIGTERM.
        log_format: "text" or "json"; `log_prompts` adds what was asked.
        metrics_open: /metrics needs no key.
        page: the chat page is at /, if what it needs is installed.
        otlp_endpoint, otlp_service_name: where traces go, and as whose.
    """

    model: str = DEFAULT_MODEL
    served_model_name: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    prompt_format: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    adapters_dir: Path | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    tls_cert: Path | None = None
    tls_key: Path | None = None

    api_keys: tuple[ApiKey, ...] = ()
    admin_keys: tuple[ApiKey, ...] = ()
    cors_origins: tuple[str, ...] = ()

    max_body: int = 8 * 2**20
    max_json_depth: int = 64
    max_json_items: int = 500_000
    body_timeout: float = 30.0
    max_headers: int = 100
    max_header_bytes: int = 64 * 2**10
    header_timeout: float = 10.0
    max_connections: int = 1024
    keep_alive: float = 75.0

    request_timeout: float | None = None
    max_concurrent_per_key: int | None = None
    requests_per_minute: int | None = None
    grace_seconds: float = 30.0

    log_format: str = "text"
    log_prompts: bool = False
    metrics_open: bool = False
    page: bool = True
    otlp_endpoint: str | None = None
    otlp_service_name: str = "corral"

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name in ("log_prompts", "metrics_open", "page"):
            require_flag(name, getattr(self, name))
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(f"log_format is {self.log_format!r}; it must be {' or '.join(LOG_FORMATS)}")
        _check_names(self)
        _check_origins(self.cors_origins)
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError(f"root_path is {self.root_path!r}; write it like /llm")
        if (self.tls_cert is None) != (self.tls_key is None):
            there, lacks = ("tls_key", "tls_cert") if self.tls_cert is None else ("tls_cert", "tls_key")
            raise ConfigError(f"{there} is given without {lacks}; TLS needs both")
        check_keys(self.api_keys, self.admin_keys)
        if self.otlp_endpoint is not None:
            _check_endpoint(self.otlp_endpoint)

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which clients ask for the model."""
        return self.served_model_name or (self.model,)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _check_numbers(settings: ServerSettings) -> None:
    require_whole("port", settings.port, low=0, high=65535)
    for name in ("max_body", "max_json_depth", "max_json_items", "max_headers", "max_connections"):
        require_whole(name, getattr(settings, name), low=1)
    require_whole("max_header_bytes", settings.max_header_bytes, low=1024)
    for name in ("body_timeout", "header_timeout"):
        require_number(name, getattr(settings, name), low=0.0, low_open=True)
    for name in ("keep_alive", "grace_seconds"):
        require_number(name, getattr(settings, name), low=0.0)
    if settings.request_timeout is not None:
        require_number("request_timeout", settings.request_timeout, low=0.0, low_open=True)
    for name in ("max_concurrent_per_key", "requests_per_minute"):
        if getattr(settings, name) is not None:
            require_whole(name, getattr(settings, name), low=1)


def _check_names(settings: ServerSettings) -> None:
    for name in (*settings.served_model_name, *settings.adapters):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a model: up to 200 characters without spaces are one")
    if not settings.host:
        raise ConfigError("host is empty; 127.0.0.1 is this machine, 0.0.0.0 is every address of it")
    taken = set(settings.names) & set(settings.adapters)
    if taken:
        raise ConfigError(f"{min(taken)!r} names both the model and an adapter; rename the adapter")


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        parts = urlsplit(origin)
        plain = (
            parts.scheme in ("http", "https")
            and parts.netloc
            and origin == f"{parts.scheme}://{parts.netloc}"
        )
        if origin != "*" and not plain:
            raise ConfigError(
                f"cors_origins has {origin!r}; write an origin like https://chat.example.org, or *"
            )


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"otlp_endpoint is {endpoint!r}; write it like http://collector:4318")
