"""A real terminal for the tests: a program in a pseudo-terminal of its own, where Ctrl-C is a signal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CTRL_C, CTRL_D, ALT_ENTER, ENTER = "\x03", "\x04", "\x1b\r", "\r"

PROMPT = ">>>"  # the space after it may come as a movement of the cursor

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>]|\r")
_PATIENCE = 60.0  # seconds; only a failing test waits so long


class Terminal:
    """A program on a terminal. What it writes is collected without its escape sequences."""

    def __init__(self, process: subprocess.Popen[bytes], device: int) -> None:
        self.process = process
        self._device = device
        self._raw = b""
        self._read = 0  # characters that `wait_for` has passed

    @property
    def text(self) -> str:
        """Everything written so far."""
        return _ESCAPES.sub("", self._raw.decode("utf-8", "replace"))

    def colours(self) -> set[str]:
        """The colour changes among the escape sequences so far."""
        changes = re.findall(r"\x1b\[([\d;]*)m", self._raw.decode("utf-8", "replace"))
        codes = {code for change in changes for code in change.split(";")}
        return {code for code in codes if code[:1] in ("3", "4", "9") and len(code) > 1} - {"39", "49"}

    def send(self, keys: str) -> None:
        """Types."""
        os.write(self._device, keys.encode())

    def wait_for(self, expected: str) -> str:
        """What was written since the last call, up to and including a text, which must come."""
        deadline = time.monotonic() + _PATIENCE
        while (found := self.text.find(expected, self._read)) < 0:
            if not self._receive(deadline):
                raise AssertionError(
                    f"{expected!r} did not come; the terminal shows: {self.text[self._read :]}"
                )
        begun, self._read = self._read, found + len(expected)
        return self.text[begun : self._read]

    def wait(self) -> int:
        """The exit status, once the program has ended."""
        deadline = time.monotonic() + _PATIENCE
        while self._receive(deadline):
            continue
        return self.process.wait(timeout=_PATIENCE)

    def _receive(self, deadline: float) -> bool:
        """Waits for output; false where none can come any more."""
        ready, _, _ = select.select([self._device], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise AssertionError(f"nothing comes any more after: {self.text[self._read :]}")
        try:
            piece = os.read(self._device, 65536)
        except OSError:  # Linux's way to say that the program's end is closed
            return False
        self._raw += piece
        return bool(piece)


@contextmanager
def terminal(
    command: Sequence[str], env: dict[str, str], columns: int = 80, rows: int = 24
) -> Iterator[Terminal]:
    """Runs a program on a terminal of its own and ends it with the block."""
    device, program_end = pty.openpty()
    fcntl.ioctl(program_end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=program_end,
        stdout=program_end,
        stderr=program_end,
        # No answers come to questions about the cursor's position.
        env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(program_end)
    try:
        yield Terminal(process, device)
    finally:
        process.kill()
        process.wait()
        os.close(device)
