"""The options of `corral serve`, in groups. Each may also stand in its configuration file, by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from corral.cli import options

_MODEL, _ADDRESS, _KEYS, _LIMITS, _OBSERVABILITY = "Model", "Address", "Keys", "Limits", "Logs and traces"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class Served:
    """What is served, and how much of it at once."""

    served_model_name: Annotated[
        list[str] | None, _option(_MODEL, "Name that clients ask for; may be given several times.")
    ] = None
    prompt_format: Annotated[str | None, _option(_MODEL, "Overrides the checkpoint's prompt format.")] = None
    adapter: Annotated[
        list[str] | None, _option(_MODEL, "NAME=FOLDER: a PEFT LoRA; may be given several times.")
    ] = None
    adapters_dir: Annotated[
        Path | None, _option(_MODEL, "The folder from which adapters may be loaded while the server runs.")
    ] = None
    page: Annotated[
        bool,
        typer.Option(
            "--page/--no-page", help="The chat page at /; needs the extra ui.", rich_help_panel=_MODEL
        ),
    ] = True
    max_num_seqs: options.MaxNumSeqs = None
    kv_cache_memory: options.KVMemory = None


@dataclass(frozen=True)
class Address:
    """Where it listens."""

    host: Annotated[str | None, _option(_ADDRESS, "127.0.0.1 by default: this machine alone.")] = None
    port: Annotated[
        int | None,
        # Vertex AI says in this variable where it will ask.
        _option(_ADDRESS, "8000 by default; 0 takes a free one.", envvar="AIP_HTTP_PORT"),
    ] = None
    root_path: Annotated[str | None, _option(_ADDRESS, "The prefix that a proxy strips, like /llm.")] = None
    trusted_proxy: Annotated[
        list[str] | None, _option(_ADDRESS, "Address whose X-Forwarded-For is believed; several times.")
    ] = None
    tls_cert: Annotated[Path | None, _option(_ADDRESS, "Certificate, a PEM file.")] = None
    tls_key: Annotated[Path | None, _option(_ADDRESS, "Its key, a PEM file without a password.")] = None
    cors_origin: Annotated[
        list[str] | None,
        _option(_ADDRESS, "Web pages of this origin may ask, like https://chat.example.org; * is all."),
    ] = None


@dataclass(frozen=True)
class Keys:
    """Who may ask."""

    api_key: Annotated[
        list[str] | None,
        _option(_KEYS, "A key; several times. `ps` shows it: prefer a file.", envvar="CORRAL_API_KEY"),
    ] = None
    api_key_file: Annotated[
        Path | None, _option(_KEYS, "Keys, one in each line: key, or name=key for the name in logs.")
    ] = None
    admin_key: Annotated[
        list[str] | None,
        _option(_KEYS, "A key for adapters and /metrics. `ps` shows it.", envvar="CORRAL_ADMIN_KEY"),
    ] = None
    admin_key_file: Annotated[Path | None, _option(_KEYS, "Admin keys, like --api-key-file.")] = None
    metrics_open: Annotated[
        bool, typer.Option("--metrics-open", help="/metrics needs no key.", rich_help_panel=_KEYS)
    ] = False


@dataclass(frozen=True)
class Limits:
    """How much may be asked."""

    max_waiting_requests: Annotated[
        int | None, _option(_LIMITS, "Requests that may wait for the engine, 512; more are answered 429.")
    ] = None
    max_waiting_tokens: Annotated[int | None, _option(_LIMITS, "Their prompts' tokens in all.")] = None
    request_timeout: Annotated[
        float | None, _option(_LIMITS, "Seconds that a request may take; clients can only ask for less.")
    ] = None
    max_concurrent_per_key: Annotated[
        int | None, _option(_LIMITS, "Requests at once of a key, or of an address where there are no keys.")
    ] = None
    requests_per_minute: Annotated[int | None, _option(_LIMITS, "The same, in a minute.")] = None
    max_body: Annotated[str | None, _option(_LIMITS, "Largest body, like 8MiB.")] = None
    max_json_depth: Annotated[int | None, _option(_LIMITS, "How deep a body may be nested: 64.")] = None
    max_json_items: Annotated[int | None, _option(_LIMITS, "Values in a body: 500000.")] = None
    body_timeout: Annotated[float | None, _option(_LIMITS, "Seconds for a body to arrive: 30.")] = None
    max_headers: Annotated[int | None, _option(_LIMITS, "Headers of a request: 100.")] = None
    max_header_bytes: Annotated[str | None, _option(_LIMITS, "Their bytes together: 64KiB.")] = None
    header_timeout: Annotated[float | None, _option(_LIMITS, "Seconds for them to arrive: 10.")] = None
    max_connections: Annotated[int | None, _option(_LIMITS, "Open connections: 1024.")] = None
    keep_alive: Annotated[float | None, _option(_LIMITS, "Seconds that an idle one stays open: 75.")] = None
    grace_seconds: Annotated[
        float | None, _option(_LIMITS, "Seconds that running requests have after SIGTERM: 30.")
    ] = None


@dataclass(frozen=True)
class Observability:
    """What the server says of itself: its log and its traces."""

    log_format: Annotated[str | None, _option(_OBSERVABILITY, "text or json.")] = None
    log_prompts: Annotated[
        bool,
        typer.Option("--log-prompts", help="Prompts stand in the log.", rich_help_panel=_OBSERVABILITY),
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        _option(
            _OBSERVABILITY,
            "Where OpenTelemetry traces go, like http://collector:4318; needs the extra otel.",
            "--otlp-endpoint",
        ),
    ] = None
    otlp_service_name: Annotated[
        str | None, _option(_OBSERVABILITY, "As whose they go: corral.", "--otlp-service-name")
    ] = None
