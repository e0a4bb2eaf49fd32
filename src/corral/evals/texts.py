"""The texts that models are evaluated on: a file, JSON lines, or standard input."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corral.evals.errors import EvalError

STANDARD_INPUT = "-"


def read_texts(source: str | Path, *, jsonl: bool | None = None) -> list[str]:
    """The texts of a file, each a document of its own; `-` is standard input.

    A file is one text. With `jsonl` each line is an object whose "text" is one; its other fields are left
    alone, and lines of white space are passed over. None goes by the file's name: `.jsonl` is such a file.
    Line ends stay as they are; a byte order mark at the very beginning goes.

    Raises:
        EvalError: the file cannot be read, is not UTF-8, holds no text, or a line is no such object.
    """
    where = "standard input" if str(source) == STANDARD_INPUT else str(source)
    text = _decoded(_read(source), where)
    by_line = Path(source).suffix.lower() == ".jsonl" if jsonl is None else jsonl
    texts = list(_rows(text, where)) if by_line else [text]
    if not any(texts):
        raise EvalError(f"{where} holds no text; give some to predict")
    return texts


def _read(source: str | Path) -> bytes:
    if str(source) == STANDARD_INPUT:
        if sys.stdin is None:  # closed by whoever started this
            raise EvalError("there is no standard input; name a file instead")
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except IsADirectoryError:
        raise EvalError(f"{source} is a folder; name a file of text") from None
    except OSError as error:
        raise EvalError(f"{source} cannot be read: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:  # a name with a null character
        raise EvalError(f"{str(source)!r} cannot be read: {error}") from None


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise EvalError(f"{where} is not UTF-8 text at byte {error.start}; convert it first") from None


def _rows(text: str, where: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvalError(f"{where} line {number} is not valid JSON: {error}") from None
        yield _text_of(row, f"{where} line {number}")


def _text_of(row: Any, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise EvalError(f'{where} must be an object like {{"text": "..."}}')
    text: str = row["text"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EvalError(f"{where} holds half of a surrogate pair, which is not valid Unicode text") from None
    return text
