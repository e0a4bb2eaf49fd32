"""How long work tells its caller where it stands: notices and progress, silent unless somebody listens."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Receives what a download has to say; the command draws it on the terminal."""

    def notice(self, text: str) -> None:
        """One sentence that a person should read."""

    def progress(self, description: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of what `description` names; `total` is None where nobody knows."""


class _Silent:
    def notice(self, text: str) -> None:
        del text

    def progress(self, description: str, done: int, total: int | None) -> None:
        del description, done, total


silent: Report = _Silent()
