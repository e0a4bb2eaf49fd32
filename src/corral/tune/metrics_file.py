"""What a run measured, a line for each step that is logged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corral.tune.errors import TuneError


class MetricsFile:
    """metrics.jsonl: objects with "step" and measures by name, in the order of steps.

    A line is written at once, so that a killed process loses none. Numbers that are not finite are null:
    JSON has none of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int, measures: Mapping[str, float]) -> None:
        """Adds a line.

        Raises:
            TuneError: it could not be written.
        """
        line = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in measures.items()},
        }
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise TuneError(f"{self.path} could not be written: {error.strerror}") from None

    def cut(self, step: int | None) -> None:
        """Drops what was logged after a step, or all of it: the run goes on from there.

        Lines after one that is damaged go too.
        """
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb+") as file:
            for line in file:
                row = _row(line)
                if row is None or step is None or row["step"] > step:
                    break
                end += len(line)
            file.truncate(end)

    def sync(self) -> None:
        """Makes all lines last through a power failure; a checkpoint must not be ahead of them."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All lines, up to one that is damaged."""
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    row = _row(line)
                    if row is None:
                        break
                    rows.append(row)
        return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """The object in a whole line."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
