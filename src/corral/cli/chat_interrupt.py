"""Ctrl-C while an answer is given: it ends the answer at once and nothing else."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Stop:
    """Ctrl-C as a wish to stop. It breaks into the wait for the next piece, but never into anything else."""

    def __init__(self) -> None:
        self.wished = False
        self._waiting = False

    def pieces(self, pieces: Iterator[T]) -> Iterator[T]:
        """The pieces, until the user wants no more."""
        while not self.wished:
            try:
                self._waiting = True
                piece = next(pieces)
                self._waiting = False
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield piece

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self.wished = True
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within the block Ctrl-C is a wish to stop."""
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop.handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def silent_keys() -> Iterator[None]:
    """Within the block the terminal does not show what is typed; it is there for the next prompt."""
    before = _attributes()
    if before is None:
        yield
        return
    silent = list(before)
    silent[3] &= ~termios.ECHO
    _set(silent)
    try:
        yield
    finally:
        _set(before)


def _attributes() -> list[Any] | None:
    """The terminal's state, if standard input is one; a background job must not touch it."""
    try:
        if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
            return None
        return list(termios.tcgetattr(sys.stdin))
    except (termios.error, OSError, ValueError, AttributeError):  # no terminal
        return None


def _set(attributes: list[Any]) -> None:
    with suppress(termios.error):  # the terminal may be gone
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)
