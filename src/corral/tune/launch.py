"""`--nproc N`: starts a command in N processes on this machine, and ends with their status.

They find each other by the variables that torchrun sets. torchrun itself kills processes half a minute
after it was told to stop, which may be in the midst of a checkpoint, and puts pages around one sentence of
what went wrong; on several machines it is what is needed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from corral.scale.launched import NOTES, lost_note

GRACE = 5.0
"""Seconds for the other processes to end by themselves, once one has failed."""

_LOOK = 0.05  # seconds between two looks at the processes
_SHOWN = 40  # lines of what a process said last


def launch(arguments: Sequence[str], processes: int, *, module: str = "corral") -> int:
    """Runs `python -m corral ARGUMENTS` in several processes and gives the exit status.

    The first process has this one's standard output and error; the others are silent, but what the first of
    them to fail says is shown, where the trouble began there. SIGINT, SIGTERM and SIGHUP go on to all, which
    end when they see fit. When one fails, the others have some seconds to end too. None outlives this one.

    Args:
        arguments: of the command, without `--nproc`.
        processes: how many; each finds its number in LOCAL_RANK.
        module: what is run instead, in tests.
    """
    with ExitStack() as stack:
        notes = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-")))
        port = stack.enter_context(_meeting_point())
        ranks = [_Rank(rank, notes) for rank in range(processes)]
        asked = stack.enter_context(_handed_on(ranks))
        for rank in ranks:
            stack.callback(rank.kill)
            rank.start([sys.executable, "-m", module, *arguments], _environment(rank.number, processes, port))
        _wait(ranks, asked)
        return _status(ranks, asked)


class _Rank:
    """One of the processes."""

    def __init__(self, number: int, notes: Path) -> None:
        self.number, self._notes = number, notes
        self.process: subprocess.Popen[bytes] | None = None
        self.ended: float | None = None
        self.killed = False
        self._said = notes / f"said-{number}"

    def start(self, command: Sequence[str], variables: dict[str, str]) -> None:
        environment = {**os.environ, **variables, NOTES: str(self._notes)}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells that this process is gone
                stdout=None if self.number == 0 else subprocess.DEVNULL,
                stderr=None if self.number == 0 else said,
                env=environment,
                start_new_session=True,  # the terminal's signals come through this process, once
            )

    def is_running(self) -> bool:
        assert self.process is not None, "it was started"
        if self.process.poll() is None:
            return True
        self.ended = self.ended or time.monotonic()
        return False

    @property
    def status(self) -> int:
        """0, or what it failed with; 128 and more for a signal, as a shell has it."""
        assert self.process is not None, "it was started"
        code = self.process.returncode
        return 128 - code if code < 0 else code

    @property
    def failed_by_itself(self) -> bool:
        """Whether it failed, and neither by this launcher nor by the failure of another."""
        return bool(self.status) and not self.killed and not lost_note(self._notes, self.number).exists()

    def send(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.killed = True
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        lines = self._said.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
        if self.status > 128 and not lines:
            lines = [f"killed by signal {self.status - 128}; 9 is mostly for want of memory"]
        return "\n".join(lines)


def _wait(ranks: Sequence[_Rank], asked: Set[int]) -> None:
    """Until all have ended, or been ended since one has failed.

    One that was asked to stop, and did, has not: the others may still be writing.
    """
    deadline: float | None = None
    while running := [rank for rank in ranks if rank.is_running()]:
        if deadline is None and any(rank.ended and rank.status not in {0, *asked} for rank in ranks):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for rank in running:
                rank.kill()
        time.sleep(_LOOK)


def _status(ranks: Sequence[_Rank], asked: Set[int]) -> int:
    """The exit status of all; says what the first has not said."""
    failed = [rank for rank in ranks if rank.status not in {0, *asked}]
    if not failed:
        return max(rank.status for rank in ranks)
    began = [rank for rank in failed if rank.failed_by_itself] or failed
    if any(rank.number == 0 for rank in began):
        return ranks[0].status  # it has said what
    first = min(began, key=lambda rank: rank.ended or 0.0)
    _say(f"process {first.number} of {len(ranks)} failed first:\n{first.last_words()}", sys.stderr)
    return first.status


def _say(text: str, stream: TextIO) -> None:
    stream.write(text + "\n")
    stream.flush()


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the meeting point is here, and not in the first process
    }
    loopback = _loopback()
    if loopback is not None:
        variables["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", loopback)
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    return variables


def _loopback() -> str | None:
    names = {name for _, name in socket.if_nameindex()} if hasattr(socket, "if_nameindex") else set()
    return next((name for name in ("lo", "lo0") if name in names), None)


@contextmanager
def _meeting_point() -> Iterator[int]:
    """A port where processes find each other, while this lasts."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


@contextmanager
def _handed_on(ranks: Sequence[_Rank]) -> Iterator[set[int]]:
    """Gives signals on to all processes, while this lasts; gives the exit statuses that these ask for."""
    asked: set[int] = set()

    def hand_on(number: int, _: FrameType | None) -> None:
        asked.add(128 + number)
        for rank in ranks:
            rank.send(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, hand_on)) for number in wanted]
    try:
        yield asked
    finally:
        for number, handler in before:
            signal.signal(number, handler)
