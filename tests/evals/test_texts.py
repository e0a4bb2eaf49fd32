"""Texts from files and standard input."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from corral.evals.errors import EvalError
from corral.evals.texts import read_texts


def test_a_file_is_one_text_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\nzwei  \n".encode())
    assert read_texts(tmp_path / "a.txt") == ["one\r\n\r\nzwei  \n"]


def test_lines_of_json_are_texts_of_their_own(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two"}, {"id": 3, "text": ""}, {"text": "猫\n"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name in ("a.jsonl", "a.JSONL", "a.txt"):
        (tmp_path / name).write_text(f"{lines}\n  \n", encoding="utf-8")
        assert read_texts(tmp_path / name, jsonl=True) == ["one\u2028two", "", "猫\n"]
    assert len(read_texts(tmp_path / "a.jsonl")) == 3
    assert len(read_texts(tmp_path / "a.txt")) == 1
    assert len(read_texts(tmp_path / "a.jsonl", jsonl=False)) == 1


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO('{"text": "é"}\n'.encode())))
    assert read_texts("-", jsonl=True) == ["é"]
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(EvalError, match="there is no standard input; name a file instead"):
        read_texts("-")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "a.txt holds no text"),
        ("a.txt", b"abc\xff", "a.txt is not UTF-8 text at byte 3"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no text"),
        ("a.jsonl", b'{"text": ""}', "a.jsonl holds no text"),
        ("a.jsonl", b'{"text": "a"}\nhello', "a.jsonl line 2 is not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1 is not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}', 'a.jsonl line 1 must be an object like {"text": "..."}'),
        ("a.jsonl", b'{"text": 3}', "a.jsonl line 1 must be an object"),
        ("a.jsonl", b'["text"]', "a.jsonl line 1 must be an object"),
        ("a.jsonl", rb'{"text": "\ud800"}', "a.jsonl line 1 holds half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvalError) as caught:
        read_texts(tmp_path / name)
    assert said in str(caught.value)


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="is a folder; name a file of text"):
        read_texts(tmp_path)
    with pytest.raises(EvalError, match=r"b\.txt cannot be read: No such file or directory"):
        read_texts(tmp_path / "b.txt")
    with pytest.raises(EvalError, match="cannot be read"):
        read_texts("a\0b")
