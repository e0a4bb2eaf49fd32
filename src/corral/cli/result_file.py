"""A file of results that is whole or not there; while it grows it lies beside its name, ready to be resumed.

OUT.partial has a line that says what it was begun with, and then the finished rows in their order. When all
are there, they become OUT in one step, and OUT.partial goes. Rows that failed are finished rows: they are
not run again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from corral.cli.prompt_file import PromptFileError

_MARK = "corral_partial_results"
_VERSION = 1
_SYNC_SECONDS = 1.0  # a power failure costs at most the rows of so long; a killed process costs none


class ResultFile:
    """Results in the order of their rows. Use it in a `with` block; leave the block early to resume later.

    Args:
        path: where the whole file is to appear.
        begun_with: what the results depend on, as plain data: they are resumed only with the same.
        overwrite: replace what lies at `path`, once the results are whole.

    Raises:
        PromptFileError: `path` exists, or what was kept there was begun with something else.
    """

    def __init__(self, path: Path, begun_with: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path = path.expanduser()
        if path.is_dir():
            raise PromptFileError(f"{path} is a folder; give the name of a file")
        self.partial = path.with_name(f"{path.name}.partial")
        if path.exists() and not overwrite:
            raise PromptFileError(f"{path} exists; choose another name, or add --overwrite")
        if self.partial.exists() and not self.partial.is_file():
            raise PromptFileError(f"{self.partial} is not a file; move it out of the way")
        self.num_rows = self.num_failed = 0
        self._file: IO[bytes] = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            self._lock()
            self._resume(json.loads(json.dumps(begun_with)))
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written before cannot be written now
            if kind is None:
                raise
        if self.num_rows == 0:
            self.partial.unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds the next row; one with an "error" has failed. A killed process does not lose it."""
        self._write(row)
        self._count(row)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Makes the file appear under its name, in one step."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file.seek(0)
        self._file.readline()
        try:
            with beside.open("wb") as whole:
                shutil.copyfileobj(self._file, whole, 2**20)
                whole.flush()
                os.fsync(whole.fileno())
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)
        _sync_folder(self.path.parent)
        self.partial.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PromptFileError(f"{self.partial} is being written by another process") from None

    def _resume(self, begun_with: Mapping[str, Any]) -> None:
        """Goes to the end of the last whole row, and drops what comes after it."""
        first = self._file.readline()
        header = self._header(first)
        end = self._file.tell()
        for line in self._file:
            row = _parse(line) if line.endswith(b"\n") else None
            if row is None or row.get("index") != self.num_rows:
                break
            self._count(row)
            end += len(line)
        if self.num_rows:
            self._check(header, begun_with)
        self._file.seek(end if self.num_rows else 0)
        self._file.truncate()
        if not self.num_rows:
            self._write({_MARK: _VERSION, **begun_with})

    def _header(self, line: bytes) -> Mapping[str, Any]:
        """What is there was begun with; empty where nothing is there, or a first line that was cut off."""
        if not line.endswith(b"\n") and f'{{"{_MARK}"'.encode().startswith(line[: len(_MARK) + 3]):
            return {}
        header = _parse(line)
        if header is None or header.get(_MARK) != _VERSION:
            raise PromptFileError(
                f"{self.partial} exists and holds no results of `corral generate`; move it out of the way"
            )
        return header

    def _check(self, header: Mapping[str, Any], begun_with: Mapping[str, Any]) -> None:
        for name in sorted({*header, *begun_with} - {_MARK}):
            then, now = header.get(name), begun_with.get(name)
            if then != now:
                values = f"{name} {_short(then)} and not {_short(now)}"
                what = "another input" if name == "input" else values
                raise PromptFileError(
                    f"{self.partial} was begun with {what}; delete {self.partial} to begin again, or run the "
                    "command as it was"
                )

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise PromptFileError(
                f"{self.partial} cannot be written: {os.strerror(error.errno or 0)}; {self.num_rows} rows "
                "are kept in it, and the same command goes on from there"
            ) from None

    def _count(self, row: Mapping[str, Any]) -> None:
        self.num_rows += 1
        self.num_failed += "error" in row


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None where the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
