"""What a model's name means: a path, a short name, or `org/name[@revision][:file.gguf]` on the Hub."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from corral.errors import ResolveError
from corral.model.presets import DEFAULT_MODEL, PRESETS, find_preset

_NAME = re.compile(
    r"(?P<model>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@:\s]+))?(?::(?P<filename>[^:]+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub at a revision (None: its main branch), and the one file of it that is meant.

    `short_name` is set where the user gave a short name from the table of presets.
    """

    repo_id: str
    revision: str | None = None
    filename: str | None = None
    short_name: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        filename = f":{self.filename}" if self.filename else ""
        return f"{self.short_name or self.repo_id}{revision}{filename}"

    @property
    def branch(self) -> str:
        return self.revision or "main"

    @property
    def commit(self) -> str | None:
        """The revision, where it is a whole commit hash: content that can never change."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def is_default(self) -> bool:
        """Whether this is the default model by its short name, which has a second source beside the Hub."""
        return self.short_name == DEFAULT_MODEL and self.revision is None and self.filename is None


def find_local(name: str) -> Path | None:
    """The existing local path that `name` gives, or None if it does not look like a path.

    Raises ResolveError for a name that can only be a path (it begins with `.`, `/` or `~`) and leads nowhere.
    """
    try:
        path = Path(name).expanduser()
        exists = bool(name) and path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, no such user, a zero byte
        path, exists = Path(name), False
    if exists:
        return path
    if name.startswith((".", "/", "~")):
        raise ResolveError(f"There is no file or folder at {name!r}.")
    return None


def parse_hub_name(name: str) -> HubName:
    """Read `short-name` or `org/name`, each with an optional `@revision` and `:file.gguf`.

    Raises ResolveError, with the short names that come close, where it is neither.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ResolveError(
            f"{name!r} is not a model name: give a local path, a short name such as {DEFAULT_MODEL}, "
            "or org/name[@revision][:file.gguf]."
        )
    model, revision, filename = match["model"], match["revision"], match["filename"]
    if any(".." in (part or "").split("/") for part in (model, revision, filename)):
        raise ResolveError(f"{name!r} is not a model name: '..' leads out of a repository.")
    if filename and not filename.endswith(".gguf"):
        raise ResolveError(f"{name!r} picks {filename!r} after the colon, which only a .gguf file can be.")
    preset = find_preset(model)
    if preset is not None:
        short_name = preset.name if "/" not in model else None
        return HubName(preset.repo_id, revision, filename, short_name)
    if "/" not in model:
        raise ResolveError(
            f"No model is called {name!r}: it is neither a local path nor a short name, and a name on the "
            f"Hub has the form org/name.{did_you_mean(model)}"
        )
    return HubName(model, revision, filename)


def did_you_mean(model: str) -> str:
    """` Did you mean …?` with the known names that resemble `model`, or nothing."""
    known = {preset.repo_id.lower(): preset.repo_id for preset in PRESETS.values()} if "/" in model else {}
    candidates = list(known) or list(PRESETS)
    close = difflib.get_close_matches(model.lower(), candidates, n=3, cutoff=0.6)
    names = [known.get(candidate, candidate) for candidate in close]
    return f" Did you mean {' or '.join(names)}?" if names else ""
