"""Texts from files and standard input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow
import pytest

from corral.evals.errors import EvalError
from corral.evals.texts import read_rows, read_texts
from tests.evals.tables import write_dataset, write_parquet, write_splits

TEXTS = [{"id": i, "text": text} for i, text in enumerate(("one", "", "zwei\r\n", "猫\u2028", "five"))]
DIALOGS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"answer {i}"}]}
    for i in range(3)
]


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


def test_tables_of_texts_are_read_from_parquet_and_from_saved_datasets(tmp_path: Path) -> None:
    wanted = [row["text"] for row in TEXTS]
    sources = (
        write_parquet(tmp_path / "a.parquet", TEXTS),
        write_parquet(tmp_path / "b.PARQUET", TEXTS),
        write_dataset(tmp_path / "one", TEXTS),
        write_dataset(tmp_path / "several", TEXTS[:3], TEXTS[3:]),
        write_splits(tmp_path / "splits", train=TEXTS, test=TEXTS[:1]) / "train",
    )
    for source in sources:
        assert read_texts(source) == wanted
        assert read_texts(str(source)) == wanted
        assert read_rows(source) == wanted


def test_dialogs_are_read_where_they_are_wanted(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, DIALOGS)), "utf-8")
    wanted = [row["messages"] for row in DIALOGS]
    for source in (
        lines,
        write_parquet(tmp_path / "a.parquet", DIALOGS),
        write_dataset(tmp_path / "saved", DIALOGS[:1], DIALOGS[1:]),
    ):
        assert read_rows(source) == wanted
        with pytest.raises(EvalError, match=r'1 holds the messages of a dialog; .* is a "text"'):
            read_texts(source)


def test_a_row_with_both_gives_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**DIALOGS[0], "text": "a"}), "utf-8")
    assert read_rows(tmp_path / "a.jsonl") == ["a"]
    (tmp_path / "a.jsonl").write_text(json.dumps({**DIALOGS[0], "text": None}), "utf-8")
    assert read_rows(tmp_path / "a.jsonl") == [DIALOGS[0]["messages"]]
    both = write_parquet(tmp_path / "a.parquet", [{**DIALOGS[0], "text": "a"}])
    assert read_rows(both) == ["a"]


@pytest.mark.parametrize("messages", ["hi", 3, ["hi"], {"role": "user", "content": "hi"}])
def test_messages_that_are_none_are_refused_by_line(tmp_path: Path, messages: object) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(DIALOGS[0]) + "\n" + json.dumps({"messages": messages}))
    with pytest.raises(EvalError, match=r"a\.jsonl line 2 must have messages like"):
        read_rows(tmp_path / "a.jsonl")


def test_a_table_that_holds_no_texts_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"holds a dataset with several splits; .* one: train, test"):
        read_texts(write_splits(tmp_path / "splits", train=TEXTS, test=TEXTS))
    with pytest.raises(EvalError, match=r"has no column 'text' or 'messages'; its columns are: id, body"):
        read_texts(write_parquet(tmp_path / "a.parquet", [{"id": 1, "body": "a"}]))
    with pytest.raises(EvalError, match=r"b\.parquet row 2 must be an object like"):
        read_texts(write_parquet(tmp_path / "b.parquet", [{"text": "a"}, {"text": None}]))
    with pytest.raises(EvalError, match=r"c\.parquet row 1 must be an object like"):
        read_texts(write_parquet(tmp_path / "c.parquet", [{"text": 3}]))
    with pytest.raises(EvalError, match=r"empty holds no text"):
        read_texts(write_dataset(tmp_path / "empty", [{"text": ""}]))
    with pytest.raises(EvalError, match="is a table, no file of lines"):
        read_texts(write_parquet(tmp_path / "d.parquet", TEXTS), jsonl=True)
    with pytest.raises(EvalError, match="holds files with other columns: one has no 'text'"):
        read_texts(write_dataset(tmp_path / "mixed", TEXTS, [{"id": 1}]))


def test_a_damaged_table_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(EvalError, match=r"a\.parquet cannot be read as a table: "):
        read_texts(tmp_path / "a.parquet")
    with pytest.raises(EvalError, match=r"b\.parquet cannot be read: No such file or directory"):
        read_texts(tmp_path / "b.parquet")
    cut = write_dataset(tmp_path / "cut", TEXTS)
    content = (cut / "data-00000-of-00001.arrow").read_bytes()
    (cut / "data-00000-of-00001.arrow").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvalError, match="cut cannot be read as a table: "):
        read_texts(cut)
    (cut / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(EvalError, match="cut cannot be read: No such file or directory"):
        read_texts(cut)


def test_text_of_a_table_that_is_not_utf8_is_refused_in_words(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pyarrow.py_buffer(b"a\xff")],
    )
    table = pyarrow.table({"text": broken})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(EvalError, match=r"a\.parquet cannot be read as a table: .*utf-8"):
        read_texts(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("{", "state.json is not valid JSON"),
        ("[]", "state.json must hold a JSON object"),
        ("{}", "state.json lists no files of its folder"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "state.json lists no files of its folder"),
        ('{"_data_files": ["a.arrow"]}', "state.json lists no files of its folder"),
        ('{"_indices_data_files": [{"filename": "indices.arrow"}]}', "call flatten_indices"),
    ],
)
def test_a_folder_with_a_state_that_is_none_is_refused(tmp_path: Path, state: str, said: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(EvalError) as caught:
        read_texts(tmp_path)
    assert said in str(caught.value)


def test_without_pyarrow_a_table_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = write_parquet(tmp_path / "a.parquet", TEXTS), write_dataset(tmp_path / "saved", TEXTS)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])  # nothing more can be imported
    for source in sources:
        with pytest.raises(EvalError, match=r"pyarrow, which is not installed: pip install 'corral\[data\]'"):
            read_texts(source)
