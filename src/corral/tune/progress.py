"""How a run stands, for whoever watches: one line that changes on a terminal, lines of a log elsewhere."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_RECENT = 20  # steps whose speed is that of the run


class Pace:
    """How fast steps go. Time between them, for saving and evaluating, does not count."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)

    def begin(self) -> None:
        """A step begins."""
        self._begun = time.perf_counter()

    def end(self, tokens: float) -> None:
        """It has ended, with so many tokens over all processes."""
        self._recent.append((tokens, time.perf_counter() - self._begun))

    @property
    def tokens_per_second(self) -> float:
        """Over the last steps; 0 before the first."""
        return sum(tokens for tokens, _ in self._recent) / max(self._seconds, 1e-9)

    def seconds_left(self, steps: int) -> float:
        """What so many steps take at the pace of the last ones."""
        return steps * self._seconds / max(1, len(self._recent))

    @property
    def _seconds(self) -> float:
        return sum(seconds for _, seconds in self._recent)


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process holds: of the GPU, or resident in the computer's memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class StepProgress:
    """Shows the steps of a run on standard error. It is a `Report` too: notices come above the line.

    Args:
        total: steps of the run.
        done: steps that were done before.
        every: steps between two lines where nobody watches on a terminal.
        console: where to; standard error by default.
    """

    def __init__(self, total: int, done: int = 0, *, every: int = 10, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._done, self._every = total, done, every
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, said="")

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int, measures: Mapping[str, float], pace: Pace, device: torch.device) -> None:
        """Shows a step that is done; of its measures "loss", "grad_norm" and "lr"."""
        said = " · ".join(self._parts(step, measures, pace, device))
        self._bar.update(self._task, completed=step, said=said)
        if not self._console.is_terminal and (step % self._every == 0 or step == self._total):
            self._print(f"step {step}/{self._total} · {said}")

    def notice(self, text: str) -> None:
        """A sentence that a person should read."""
        self._print(text)

    def progress(self, description: str, done: int, total: int | None) -> None:
        """Downloads are over when steps begin."""

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def _parts(self, step: int, measures: Mapping[str, float], pace: Pace, device: torch.device) -> list[str]:
        known = {"loss": ("loss", ".4f"), "grad_norm": ("grad norm", ".3g"), "lr": ("lr", ".2e")}
        parts = [
            f"{words} {measures[name]:{form}}" for name, (words, form) in known.items() if name in measures
        ]
        parts.append(f"{pace.tokens_per_second:,.0f} tokens/s")
        parts.append(f"{memory_in_use(device) / 1e9:.1f} GB")
        left = timedelta(seconds=round(pace.seconds_left(self._total - step)))
        return [*parts, f"{left} left"]
