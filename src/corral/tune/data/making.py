"""Rows into a folder of items: read, written as tokens, cut and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from corral.checkpoints.new_folder import new_folder
from corral.checkpoints.report import Report
from corral.tune.config import DataConfig
from corral.tune.data.formats import Format, find_format, parse_row, wanted_columns
from corral.tune.data.limits import cut, is_trained, is_undecided, longest_document
from corral.tune.data.places import Place
from corral.tune.data.render import Writer
from corral.tune.data.report import SourceReport
from corral.tune.data.store import ItemWriter
from corral.tune.errors import TuneError
from corral.tune.examples import Item

_EVERY = 64  # rows between two signs of progress

Parts = Sequence[tuple[str, Place]]
"""Places, each with its part of the data: "train" or "eval"."""


@dataclass(frozen=True)
class Maker:
    """Makes folders of items."""

    config: DataConfig
    kind: str
    max_length: int
    writer: Writer
    report: Report

    def make(self, folder: Path, parts: Parts) -> None:
        """Writes the items of all rows into a folder, which appears whole or not at all.

        Raises:
            TuneError: a row is wrong, or no token of a part would be trained.
            CheckpointError: the folder cannot be written.
        """
        with new_folder(folder, 0) as partial, ItemWriter(partial) as out:
            counted = [self._add_place(out, index, *part) for index, part in enumerate(parts)]
            for part in dict.fromkeys(part for part, _ in parts):
                self._check_some([source for source in counted if source.part == part])
            out.finish({"sources": [asdict(source) for source in counted]})

    def _add_place(self, out: ItemWriter, index: int, part: str, place: Place) -> SourceReport:
        source = place.source
        counts, total = SourceReport(source.path, part), place.num_bytes
        known: Format | None = None
        for row, share in place.rows(wanted_columns(source)):
            if counts.rows == self.config.limit:
                break
            if known is None:
                known = find_format(source, row, self.kind)
                counts = SourceReport(source.path, part, known.name)
            counts = counts.plus(rows=1)
            for item in self.writer.items(parse_row(known, source, row), row.where):
                kept, counts = self._fitted(item, counts, row.where)
                if kept is not None:
                    out.add(kept, index)
            if counts.rows % _EVERY == 0:
                self._tell(f"Tokenizing {source.path}", share, total, out.num_bytes)
        return counts

    def _fitted(self, item: Item, counts: SourceReport, where: str) -> tuple[Item | None, SourceReport]:
        """The item as it is trained, or None where it is left out; and the counts with it."""
        trains, before, length = is_trained(item), len(item), longest_document(item)
        too_long = length > self.max_length
        if too_long and self.config.overlong == "error":
            raise TuneError(
                f"{where} has {length:,} tokens, and max_length is {self.max_length:,}; raise it, or set "
                "overlong to truncate or drop"
            )
        if too_long and self.config.overlong == "drop":
            return None, counts.plus(dropped=1)
        if too_long:
            item = cut(item, self.max_length)
        if not is_trained(item):
            return None, counts.plus(untrained=1, cut_away=int(trains))
        if is_undecided(item):
            return None, counts.plus(undecided=1)
        if too_long:
            counts = counts.plus(cut=1, lost=before - len(item))
        return item, counts.plus(items=1)

    def _check_some(self, sources: Sequence[SourceReport]) -> None:
        if any(source.items for source in sources):
            return
        names, rows = ", ".join(source.name for source in sources), sum(source.rows for source in sources)
        if rows == 0:
            raise TuneError(f"{names} has no rows; give some to train on")
        reasons: dict[str, int] = {}
        for source in sources:
            for reason, count in source.left_out(self.max_length).items():
                reasons[reason] = reasons.get(reason, 0) + count
        said = ", or ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
        raise TuneError(
            f"no token would be trained: all {rows:,} rows of {names} are left out, because {said}"
        )

    def _tell(self, what: str, share: float | None, total: int, written: int) -> None:
        if share is None:
            self.report.progress(what, written, None)
        else:
            self.report.progress(what, int(share * total), total)
