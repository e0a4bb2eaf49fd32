"""From a source to its files on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corral.checkpoints.report import Report, silent
from corral.tune.config import DataConfig, Source
from corral.tune.data.hub import DataSetName, fetch_data_set
from corral.tune.data.repository import CARD, choose_files
from corral.tune.data.rows import SUFFIXES, Row, read_rows
from corral.tune.errors import TuneError

_SPLITS, _STATE = "dataset_dict.json", "state.json"


@dataclass(frozen=True)
class Place:
    """Where the rows of a source are: what sentences call each of its files, and its path.

    A folder that `save_to_disk` of `datasets` wrote is one file.
    """

    source: Source
    files: tuple[tuple[str, Path], ...]

    def rows(self, wanted: set[str]) -> Iterator[tuple[Row, float | None]]:
        """All rows, and how much of the place has been read with each, from 0 to 1.

        Raises:
            TuneError: a file cannot be read.
        """
        sizes = [_size(path) for _, path in self.files]
        total, before = max(1, sum(sizes)), 0
        for (name, path), size in zip(self.files, sizes, strict=True):
            for row in read_rows(path, name, wanted):
                yield row, None if row.share is None else (before + row.share * size) / total
            before += size

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(_size(path) for _, path in self.files)

    def fingerprint(self) -> list[str]:
        """The SHA-256 of each file's content, in hexadecimal."""
        return [_sha256(file) for _, path in self.files for file in _contents(path)]


def find_places(config: DataConfig, report: Report = silent) -> tuple[list[Place], list[Place]]:
    """Where the rows for training and for evaluation are; those of the Hub are fetched.

    Raises:
        TuneError: a source leads to no rows, or both parts have none.
        ResolveError: what the Hub refuses.
    """
    return (
        [find_place(source, report) for source in _sources(config.train)],
        [find_place(source, report) for source in _sources(config.eval)],
    )


def find_place(source: Source, report: Report = silent) -> Place:
    """Where the rows of a source are.

    Raises:
        TuneError: its path leads to no file of rows, or there is no such split or subset.
        ResolveError: what the Hub refuses.
    """
    local = _existing(source.path)
    if local is not None:
        return Place(source, tuple(_local_files(local, source)))
    name = DataSetName.parse(source.path)
    if name is None or source.path.endswith(SUFFIXES):
        raise TuneError(
            f"there is no file or folder {source.path!r}; give a file of rows ({', '.join(SUFFIXES)}), a "
            "folder that save_to_disk of datasets wrote, or a data set on the Hub as org/name[@revision]"
        )
    called = [(f"{name.repo_id} {path}", file) for path, file in fetch_data_set(name, source, report)]
    return Place(source, tuple(called))


def _sources(given: str | Source | list[str | Source] | None) -> list[Source]:
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return [Source(path=each) if isinstance(each, str) else each for each in listed]


def _existing(path: str) -> Path | None:
    try:
        found = Path(path).expanduser()
        return found if path and found.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a path, no such user, a zero byte
        return None


def _local_files(path: Path, source: Source) -> list[tuple[str, Path]]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise TuneError(f"{source.path} is no file of rows: its name must end in {', '.join(SUFFIXES)}")
        _refuse_choice(source, "one file")
        return [(source.path, path)]
    if (path / _SPLITS).is_file():
        return [_saved_split(path, source)]
    if (path / _STATE).is_file():
        _refuse_choice(source, "one split")
        return [(source.path, path)]
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    card = (path / CARD).read_text("utf-8", "replace") if CARD in names else ""
    return [(f"{source.path}/{name}", path / name) for name in choose_files(names, card, source)]


def _saved_split(path: Path, source: Source) -> tuple[str, Path]:
    try:
        splits = json.loads((path / _SPLITS).read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        raise TuneError(f"{path / _SPLITS} does not name the splits; save the data set again") from None
    if source.subset is not None:
        raise TuneError(f"{source.path} has no subsets; leave subset ({source.subset!r}) out")
    if source.split not in splits:
        raise TuneError(f"{source.path} has no split {source.split!r}; it has: {', '.join(map(str, splits))}")
    return f"{source.path}/{source.split}", path / source.split


def _refuse_choice(source: Source, what: str) -> None:
    if source.split != "train":
        raise TuneError(f"{source.path} is {what}; leave split ({source.split!r}) out")
    if source.subset is not None:
        raise TuneError(f"{source.path} is {what}; leave subset ({source.subset!r}) out")


def _contents(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _contents(path))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TuneError(f"{path} cannot be read: {error.strerror}") from None
