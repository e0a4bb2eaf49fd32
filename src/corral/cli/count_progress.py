"""How far an evaluation is, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from corral.cli.progress import TerminalReport


class EvalReport(TerminalReport):
    """A `TerminalReport` that also says how many tokens of the text are done."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._task: TaskID | None = None

    def __enter__(self) -> EvalReport:
        return self

    def tokens(self, done: int, total: int) -> None:
        """Move the bar of the text; the bars of downloads make room for it."""
        if not self._console.is_terminal:
            return
        if self._task is None:
            if self._bars is not None:
                self._bars.stop()
            self._bars = Progress(
                TextColumn("tokens"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
            self._task = self._bars.add_task("", total=total)
        assert self._bars is not None, "a task is one of a bar"
        self._bars.update(self._task, completed=done)
