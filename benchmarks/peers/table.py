"""From runs to a table: medians, and the ratio of Corral to each peer."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .work import Row

CORRAL = "corral"

# For a piece of work and a peer, what each round gave; None where a round failed.
Rounds = Mapping[tuple[str, str], Sequence[Mapping[str, Any] | None]]


def samples(rounds: Rounds, row: Row, peer: str) -> list[float | None]:
    """A row's figure in each round, in order."""
    found = rounds.get((row.work.name, peer), ())
    return [None if result is None else float(result[row.metric]) for result in found]


def median(values: Iterable[float | None]) -> float | None:
    """Of the rounds that gave a figure; None where none did."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def ratio(corral: Sequence[float | None], peer: Sequence[float | None]) -> float | None:
    """The median of the rounds' own ratios: what slows the machine for a while slows both of a round."""
    return median(a / b for a, b in zip(corral, peer, strict=False) if a is not None and b is not None)


def summary(rounds: Rounds, rows: Sequence[Row], peers: Sequence[str]) -> list[dict[str, Any]]:
    """The table as plain data."""
    found = []
    for row in rows:
        figures = {peer: samples(rounds, row, peer) for peer in peers}
        ratios = {
            peer: ratio(figures[CORRAL], figures[peer])
            for peer in peers
            if peer != CORRAL and CORRAL in figures
        }
        found.append(
            {
                "row": row.name,
                "title": row.title,
                "metric": row.metric,
                "samples": figures,
                "medians": {peer: median(values) for peer, values in figures.items()},
                "ratios": ratios,
                "against_best": min((value for value in ratios.values() if value is not None), default=None),
            }
        )
    return found


def markdown(table: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> str:
    """Tokens per second; after each peer's, how many times faster Corral is."""
    lines = [
        "| tok/s | " + " | ".join(peers) + " | Corral / best peer |",
        "| --- |" + " ---: |" * (len(peers) + 1),
    ]
    for row in table:
        cells = [_cell(row["medians"][peer], row["ratios"].get(peer)) for peer in peers]
        best = row["against_best"]
        lines.append(f"| {row['title']} | " + " | ".join([*cells, _times(best) if best else "–"]) + " |")
    return "\n".join(lines)


def _cell(speed: float | None, times: float | None) -> str:
    if speed is None:
        return "–"
    figure = f"{speed:,.0f}" if speed >= 200 else f"{speed:.1f}"
    return figure if times is None else f"{figure} ({_times(times)})"


def _times(value: float) -> str:
    return f"{value:.2f}x"
