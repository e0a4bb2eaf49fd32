"""Rows of data files: JSON lines, JSON lists, and tables."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from corral.evals.errors import EvalError
from corral.evals.tables import is_table, table_rows
from corral.tune.errors import TuneError

SUFFIXES = (".jsonl", ".json", ".parquet")
"""What files of rows are called."""

_MARK = b"\xef\xbb\xbf"  # a byte order mark


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        fields: its columns by their names; of a table only those that were asked for.
        columns: the names of all columns.
        where: the file and the number of the line or row, for sentences.
        share: how much of its file has been read with it, from 0 to 1; None where nobody knows.
    """

    fields: Mapping[str, Any]
    columns: tuple[str, ...]
    where: str
    share: float | None = None


def read_rows(file: Path, name: str, wanted: Collection[str]) -> Iterator[Row]:
    """The rows of a file, or of a folder that `save_to_disk` of `datasets` wrote.

    Lines of white space are passed over. In tables, keys without a value are left out of objects.

    Args:
        file: where they are.
        name: what sentences call it.
        wanted: the columns of interest; lines have the others too.

    Raises:
        TuneError: the file cannot be read, is damaged, or a line is no JSON object.
    """
    if is_table(file):
        yield from _table(file, name, wanted)
        return
    try:
        size = max(1, file.stat().st_size)
        with file.open("rb") as opened:
            if _begins_list(opened):
                yield from _list(opened.read(), name)
            else:
                yield from _lines(opened, name, size)
    except OSError as error:
        raise TuneError(f"{name} cannot be read: {os.strerror(error.errno or 0)}") from None


def _table(file: Path, name: str, wanted: Collection[str]) -> Iterator[Row]:
    try:
        columns, rows = table_rows(file, wanted)
        if not set(columns) & set(wanted):  # so that the sentence about missing columns has a row to name
            yield Row({}, tuple(columns), f"{name} row 1")
            return
        for number, fields in enumerate(rows, 1):
            yield Row(fields, tuple(columns), f"{name} row {number}")
    except EvalError as error:
        raise TuneError(str(error).replace(str(file), name)) from None


def _begins_list(file: BinaryIO) -> bool:
    """Whether the first character is a bracket; the file stands at its first character then."""
    if file.read(len(_MARK)) != _MARK:
        file.seek(0)
    start = file.tell()
    while (character := file.read(1)) in (b" ", b"\t", b"\r", b"\n"):
        pass
    file.seek(start)
    return character == b"["


def _list(content: bytes, name: str) -> Iterator[Row]:
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TuneError(f"{name} is not valid JSON: {error}") from None
    for number, fields in enumerate(rows, 1):
        yield _row(fields, f"{name} row {number}", b"\\ud" in content.lower(), number / len(rows))


def _lines(file: BinaryIO, name: str, size: int) -> Iterator[Row]:
    done = 0
    for number, line in enumerate(file, 1):
        done += len(line)
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            fields = json.loads(line)
        except UnicodeDecodeError:
            raise TuneError(f"{where} is not UTF-8 text; convert the file first") from None
        except (ValueError, RecursionError) as error:
            raise TuneError(f"{where} is not valid JSON: {error}") from None
        yield _row(fields, where, b"\\ud" in line.lower(), min(1.0, done / size))


def _row(fields: Any, where: str, escapes: bool, share: float) -> Row:
    """`escapes` says that a part of a surrogate pair may stand alone in it."""
    if not isinstance(fields, dict):
        raise TuneError(f"{where} must be an object with columns, not {type(fields).__name__}")
    if escapes:
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise TuneError(
                f"{where} holds half of a surrogate pair, which is not valid Unicode text"
            ) from None
    return Row(fields, tuple(fields), where, share)
