"""The texts that models are evaluated on and calibrated with: files, tables, or standard input."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corral.evals.errors import EvalError
from corral.evals.tables import is_table, table_column

STANDARD_INPUT = "-"

Row = str | list[Any]
"""A text, or the messages of a dialog as objects with a role and content."""

_LIKE_TEXT, _LIKE_MESSAGES = '{"text": "..."}', '{"messages": [{"role": "user", "content": "..."}, ...]}'


def read_texts(source: str | Path, *, jsonl: bool | None = None) -> list[str]:
    """The texts of a file, each a document of its own; `-` is standard input.

    A file is one text. With `jsonl` each line is an object whose "text" is one; its other fields are left
    alone, and lines of white space are passed over. None goes by the file's name: `.jsonl` is such a file,
    and a `.parquet` file, or a folder that `save_to_disk` of Hugging Face's `datasets` wrote, is a table with
    a column "text". Line ends stay as they are; a byte order mark at the very beginning of a file goes.

    Raises:
        EvalError: the file cannot be read, is not UTF-8, holds no text, or a row has none.
    """
    return [row for row in _read_rows(source, jsonl, messages=False) if isinstance(row, str)]


def read_rows(source: str | Path, *, jsonl: bool | None = None) -> list[Row]:
    """As `read_texts`, but a row may have "messages" in place of a "text": a dialog, as a list of objects.

    Where a line has both, its text counts; so does a table's column "text".

    Raises:
        EvalError: as `read_texts`.
    """
    return _read_rows(source, jsonl, messages=True)


def _read_rows(source: str | Path, jsonl: bool | None, *, messages: bool) -> list[Row]:
    where = "standard input" if str(source) == STANDARD_INPUT else str(source)
    if str(source) != STANDARD_INPUT and is_table(Path(source)):
        if jsonl is not None:
            raise EvalError(f"{where} is a table, no file of lines; leave the choice of JSON lines out")
        rows = list(_table_rows(Path(source), messages))
    else:
        text = _decoded(_read(source), where)
        by_line = Path(source).suffix.lower() == ".jsonl" if jsonl is None else jsonl
        rows = list(_line_rows(text, where, messages)) if by_line else [text]
    if not any(rows):
        raise EvalError(f"{where} holds no text; give some to predict")
    return rows


def _read(source: str | Path) -> bytes:
    if str(source) == STANDARD_INPUT:
        if sys.stdin is None:  # closed by whoever started this
            raise EvalError("there is no standard input; name a file instead")
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except IsADirectoryError:
        raise EvalError(
            f"{source} is a folder; name a file of text, or a folder that save_to_disk of datasets wrote"
        ) from None
    except OSError as error:
        raise EvalError(f"{source} cannot be read: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:  # a name with a null character
        raise EvalError(f"{str(source)!r} cannot be read: {error}") from None


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise EvalError(f"{where} is not UTF-8 text at byte {error.start}; convert it first") from None


def _line_rows(text: str, where: str, messages: bool) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        at = f"{where} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvalError(f"{at} is not valid JSON: {error}") from None
        if not isinstance(row, dict) or (row.get("text") is None and row.get("messages") is None):
            wanted = f"{_LIKE_TEXT} or {_LIKE_MESSAGES}" if messages else _LIKE_TEXT
            raise EvalError(f"{at} must be an object like {wanted}")
        yield _row_of("messages" if row.get("text") is None else "text", row, at, messages)


def _table_rows(source: Path, messages: bool) -> Iterator[Row]:
    column, values = table_column(source, ("text", "messages"))
    for number, value in enumerate(values, 1):
        yield _row_of(column, {column: value}, f"{source} row {number}", messages)


def _row_of(field: str, row: dict[str, Any], where: str, messages: bool) -> Row:
    value = row[field]
    if field == "text":
        return _text_of(value, where)
    if not messages:
        raise EvalError(f'{where} holds the messages of a dialog; what is measured here is a "text"')
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise EvalError(f"{where} must have messages like those of {_LIKE_MESSAGES}")
    return value


def _text_of(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise EvalError(f"{where} must be an object like {_LIKE_TEXT}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EvalError(f"{where} holds half of a surrogate pair, which is not valid Unicode text") from None
    return text
