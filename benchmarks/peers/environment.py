"""A virtual environment for each peer, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from corral.checkpoints.cache import cache_folder

from .base import Peer

# From PyPI, torch brings gigabytes of CUDA; where a CPU build is on offer, such as by PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS, these versions take it.
CONSTRAINTS = ("torch>=2.11,<2.14",)
_MARKER = "installed.json"


class SetupError(Exception):
    """A peer cannot be had here; the message is one line that says why."""


@dataclass(frozen=True)
class Environment:
    """A peer's own interpreter and the versions of what is installed beside it."""

    peer: Peer
    python: Path
    versions: dict[str, str]

    @property
    def version(self) -> str:
        return self.versions.get(normal(self.peer.package), self.peer.version)


def normal(name: str) -> str:
    """A distribution's name as PyPI compares names."""
    return name.lower().replace("_", "-").replace(".", "-")


def peers_folder() -> Path:
    return cache_folder() / "peers"


def prepare(peer: Peer) -> Environment:
    """The peer's environment; installs it where it is missing, or was made by another recipe.

    Raises:
        SetupError: pip could not install it.
    """
    if not peer.installs:  # Corral itself
        return Environment(peer, Path(sys.executable), {})
    folder = peers_folder() / f"{peer.package}-{peer.version}"
    python, marker = folder / "bin" / "python", folder / _MARKER
    recipe = _recipe(peer)
    if marker.exists() and (made := json.loads(marker.read_text()))["recipe"] == recipe:
        return Environment(peer, python, made["versions"])
    versions = _install(peer, folder, python)
    marker.write_text(json.dumps({"recipe": recipe, "versions": versions}, indent=2))
    return Environment(peer, python, versions)


def _recipe(peer: Peer) -> str:
    finish = peer.finish(Path("folder")) if peer.finish else []
    told = [finish, peer.installs, peer.removes, peer.environ, CONSTRAINTS, sys.version_info[:2]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _install(peer: Peer, folder: Path, python: Path) -> dict[str, str]:
    print(f"{peer.name}: installing {peer.package} {peer.version} into {folder}", flush=True)
    begun = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder.with_suffix(folder.suffix + ".log")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(CONSTRAINTS) + "\n")
    environ = {**os.environ, **(peer.environ or {}), "PIP_CONSTRAINT": str(constraints)}
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    commands += [[str(python), "-m", "pip", "install", *arguments] for arguments in peer.installs]
    if peer.removes:
        commands.append([str(python), "-m", "pip", "uninstall", "--yes", *peer.removes])
    if peer.finish:
        commands += peer.finish(folder)
    with log.open("w") as out:
        for command in commands:
            if not _succeeds(command, environ, out):
                out.flush()
                shutil.rmtree(folder, ignore_errors=True)
                raise SetupError(f"{peer.name} cannot be installed: {_last_error(log)} ({log})")
    print(f"{peer.name}: installed in {time.perf_counter() - begun:.0f} s", flush=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    return {normal(row["name"]): row["version"] for row in json.loads(listed.stdout)}


def _succeeds(command: list[str], environ: dict[str, str], out: TextIO) -> bool:
    try:
        return subprocess.run(command, env=environ, stdout=out, stderr=subprocess.STDOUT).returncode == 0
    except FileNotFoundError:
        print(f"error: {command[0]} is not installed", file=out)
        return False


def _last_error(log: Path) -> str:
    """The last line in which pip says that something is wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no output"])[-1][:200]
