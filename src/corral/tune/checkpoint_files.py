"""What a checkpoint says of itself, and whether its files are still what was written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corral.tune.errors import TuneError

VERSION = 1
"""Of what state.json holds."""
STATE = "state.json"
"""Where a checkpoint says what it is."""


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        TuneError: it cannot be read, or is of another version.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TuneError(damaged(folder, f"{STATE} cannot be read ({error})")) from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        version = state.get("version") if isinstance(state, dict) else None
        raise TuneError(f"{folder} was written by another version of Corral ({version}, not {VERSION})")
    wanted: dict[str, tuple[type, ...]] = {
        "step": (int,),
        "position": (dict,),
        "counters": (dict,),
        "loss": (float, int, type(None)),
        "identity": (dict,),
        "files": (dict,),
    }
    has_all = all(name in state and isinstance(state[name], kind) for name, kind in wanted.items())
    if not has_all or state["position"].keys() != {"epoch", "step"}:
        raise TuneError(damaged(folder, f"{STATE} lacks something"))
    return state


def what_is_damaged(folder: Path, files: Mapping[str, Any]) -> str | None:
    """What is wrong with the files of a checkpoint, if anything."""
    for name, said in files.items():
        file = folder / name
        if not file.is_file():
            return damaged(folder, f"{name} is missing")
        try:
            same = said["bytes"] == file.stat().st_size and said["crc32"] in (None, _crc32(file))
        except (OSError, KeyError, TypeError) as error:
            return damaged(folder, f"{name} cannot be read ({error})")
        if not same:
            return damaged(folder, f"{name} is not what was written")
    return None


def damaged(folder: Path, what: str) -> str:
    """That a checkpoint is damaged, and what to do."""
    return f"{folder} is damaged: {what}; delete it, and the run goes on from the one before it"


def described(file: Path, *, summed: bool) -> dict[str, int | None]:
    """The size of a file, and its checksum if that is wanted."""
    return {"bytes": file.stat().st_size, "crc32": _crc32(file) if summed else None}


def _crc32(file: Path) -> int:
    """A checksum against accidents, at the speed of a disk."""
    total = 0
    with file.open("rb") as content:
        while piece := content.read(2**20):
            total = zlib.crc32(piece, total)
    return total


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, last through a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
