"""How long work stands, on the terminal: bars while somebody watches, single lines otherwise."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class TerminalReport:
    """A `Report` that writes to standard error, and draws bars only where that is a terminal.

    Use it as a context manager: leaving the block takes the bars down, also after an error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> TerminalReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def notice(self, text: str) -> None:
        """Print one line, above the bars if there are any."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, description: str, done: int, total: int | None) -> None:
        """Move the bar of `description`; it appears with its first bytes."""
        if not self._console.is_terminal:
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=self._console,
            )
            self._bars.start()
        if description not in self._tasks:
            self._tasks[description] = self._bars.add_task(description, total=total)
        self._bars.update(self._tasks[description], completed=done, total=total)


class RowProgress:
    """A bar on standard error for rows that are worked off; nothing where that is no terminal.

    `done` of `total` rows were there before.
    """

    def __init__(self, done: int, total: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=total, completed=done, speed="")
        self._begun, self._tokens, self._failed = time.monotonic(), 0, 0

    def __enter__(self) -> RowProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def add(self, tokens: int, failed: bool) -> None:
        """Counts a row with the tokens that it gave."""
        self._tokens += tokens
        self._failed += failed
        speed = f"{self._tokens / max(time.monotonic() - self._begun, 1e-9):,.0f} tokens/s"
        said = f"{speed}, {self._failed} failed" if self._failed else speed
        self._bars.update(self._task, advance=1, speed=said)
