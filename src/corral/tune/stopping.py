"""Signals that ask a run to stop: it saves after the step and ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Notes SIGTERM and SIGINT while its block lasts, so that the loop can end after the step.

    The first signal is only noted. A SIGINT (Ctrl-C) after it raises KeyboardInterrupt at once; a SIGTERM
    after it changes nothing, since schedulers send several before they kill. A run that was asked to stop
    ends with exit code 128 + the signal's number, 143 or 130, as a program that the signal ended: it is not
    done, and the same command with --resume goes on.

    To be used in the main thread: Python has signals nowhere else.
    """

    def __init__(self) -> None:
        self._noted: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether the run was asked to stop."""
        return self._noted is not None

    @property
    def signal_name(self) -> str:
        """The signal that asked first, such as SIGTERM; empty where none did."""
        return "" if self._noted is None else self._noted.name

    @property
    def exit_code(self) -> int:
        """What the program ends with: 0 where nobody asked it to stop."""
        return 0 if self._noted is None else 128 + self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = self._noted or signal.Signals(number)
