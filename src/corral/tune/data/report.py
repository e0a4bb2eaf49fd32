"""What became of the rows: counted while they are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rows_in_words(count: int) -> str:
    """A number of rows, as a person writes it."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


@dataclass(frozen=True)
class SourceReport:
    """One source.

    Attributes:
        name: its path or name.
        part: "train" or "eval".
        format: of its rows.
        rows: that were read.
        items: that came out of them; a preference gives two to rate.
        cut: items that were cut at the end, and `lost` the tokens that went.
        dropped: items that were left out because they were too long.
        untrained: items that were left out because none of their tokens would be trained; `cut_away` of them
            because all of these were cut off.
        undecided: preferences that were left out because both completions are the same.
    """

    name: str
    part: str
    format: str = ""
    rows: int = 0
    items: int = 0
    cut: int = 0
    lost: int = 0
    dropped: int = 0
    untrained: int = 0
    cut_away: int = 0
    undecided: int = 0

    def plus(self, **counts: int) -> SourceReport:
        """The same with higher counts."""
        return replace(self, **{name: getattr(self, name) + more for name, more in counts.items()})

    def left_out(self, max_length: int) -> dict[str, int]:
        """How many items were left out, by the reason."""
        reasons = {
            f"they are longer than {max_length:,} tokens": self.dropped,
            f"nothing to learn is in their first {max_length:,} tokens": self.cut_away,
            "none of their tokens would be trained": self.untrained - self.cut_away,
            "both completions are the same": self.undecided,
        }
        return {reason: count for reason, count in reasons.items() if count}


@dataclass(frozen=True)
class LengthReport:
    """Items that are trained or evaluated on, in tokens: of all, of those trained, and of each item."""

    items: int
    tokens: int
    trained: int
    min: int
    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64], trained: int) -> LengthReport:
        """Of items of some lengths, at least one."""
        return cls(
            items=len(lengths),
            tokens=int(lengths.sum()),
            trained=trained,
            min=int(lengths.min()),
            median=int(np.percentile(lengths, 50, method="nearest")),
            p95=int(np.percentile(lengths, 95, method="nearest")),
            max=int(lengths.max()),
        )

    @property
    def trained_share(self) -> float:
        return self.trained / max(1, self.tokens)


@dataclass(frozen=True)
class DataReport:
    """What a run trains on.

    Attributes:
        kind: the objective's.
        max_length: tokens of a document, at most.
        sources: in their order, those of evaluation last.
        train, eval: the items; a mixture counts an item as often as it comes in an epoch.
        duplicates: items for training that repeat an earlier one.
        shared: items for evaluation that are trained on too.
    """

    kind: str
    max_length: int
    sources: tuple[SourceReport, ...]
    train: LengthReport
    eval: LengthReport | None
    duplicates: int
    shared: int

    def to_dict(self) -> dict[str, Any]:
        """All counts as plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Sentences for a person; those of trouble only where there is some."""
        return [
            *self._sizes(),
            *(line for source in self.sources for line in self._trouble(source)),
            *self._same(),
        ]

    def _sizes(self) -> Iterator[str]:
        for name, part in (("train", self.train), ("eval", self.eval)):
            if part is not None:
                yield (
                    f"{name}: {rows_in_words(part.items)}, {part.tokens:,} tokens, "
                    f"{part.trained_share:.1%} of them trained; lengths {part.min:,} to {part.max:,}, "
                    f"median {part.median:,}, 95% up to {part.p95:,}"
                )

    def _trouble(self, source: SourceReport) -> Iterator[str]:
        if source.cut:
            yield (
                f"{source.name}: cut at {self.max_length:,} tokens: {rows_in_words(source.cut)}; "
                f"{source.lost:,} tokens went"
            )
        for reason, count in source.left_out(self.max_length).items():
            yield f"{source.name}: left out, because {reason}: {rows_in_words(count)}"

    def _same(self) -> Iterator[str]:
        if self.duplicates:
            yield f"the same as an earlier one: {rows_in_words(self.duplicates)}"
        if self.shared:
            yield f"for evaluation, but trained on too: {rows_in_words(self.shared)}"
