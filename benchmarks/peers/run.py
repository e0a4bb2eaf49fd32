"""Starts one process for each run, and keeps what it measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .catalog import module_of
from .environment import Environment
from .work import Work

# The folder is on the path only until this package is found: what else lies in it must not stand in for a
# module that the peer means.
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); import peers.child; "
    "sys.path.remove(sys.argv[1]); peers.child.main()"
)
_PACKAGE_FOLDER = Path(__file__).parents[1]
_SECONDS = 1800


class RunError(Exception):
    """A run gave no result; the message is one line that says why."""


def run(
    environment: Environment, model: Path, work: Work, cores: tuple[int, ...], seed: int
) -> dict[str, Any]:
    """Runs a piece of work on a peer, and gives its figures.

    Raises:
        RunError: the peer failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        job = {
            "module": module_of(environment.peer),
            "model": str(model),
            "work": asdict(work),
            "cores": cores,
            "seed": seed,
            "result": str(result),
        }
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": str(len(cores)),
            **(environment.peer.run_environ or {}),
        }
        command = [str(environment.python), "-c", _START, str(_PACKAGE_FOLDER)]
        status = _finish(command, json.dumps(job), environ, log)
        if status is None:
            raise RunError(f"{environment.peer.name}, {work.name}: over {_SECONDS} s")
        if not result.exists():
            raise RunError(f"{environment.peer.name}, {work.name}: {_last_error(log)} (exit {status})")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def _finish(command: list[str], job: str, environ: dict[str, str], log: Path) -> int | None:
    """The exit status of a process, below 0 for a signal; None if it takes too long.

    Whatever becomes of it, no process that it started stays behind.
    """
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            process.communicate(job, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode


def _last_error(log: Path) -> str:
    """The last line of a traceback, if need be of another process of the peer's."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no output"])[-1][:300]
