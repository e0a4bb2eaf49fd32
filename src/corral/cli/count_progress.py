"""How much of some work is done, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from corral.cli.progress import TerminalReport


class CountReport(TerminalReport):
    """A `TerminalReport` that also says how many of what are done, such as tokens or matrices."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._counts: dict[str, TaskID] = {}

    def __enter__(self) -> CountReport:
        return self

    def count(self, what: str, done: int, total: int) -> None:
        """Move the bar of what is counted; the bars of downloads make room for it."""
        if not self._console.is_terminal:
            return
        if not self._counts:
            if self._bars is not None:
                self._bars.stop()
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
        assert self._bars is not None, "a count has a bar"
        if what not in self._counts:
            self._counts[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._counts[what], completed=done)
