"""Rows come from lines, lists, tables, saved data sets and the Hub, and say where they came from."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from corral.errors import CorralError, ResolveError
from corral.tune.config import Source
from corral.tune.data.formats import wanted_columns
from corral.tune.data.places import find_place
from corral.tune.data.prepare import Prepared
from corral.tune.errors import TuneError
from tests.checkpoints.fake_hub import FakeHub
from tests.evals.tables import write_dataset, write_parquet, write_splits
from tests.tune.data.conftest import PromptFormat
from tests.tune.data.items import as_example, text_of

ROWS: list[dict[str, Any]] = [{"text": f"Row {i}.", "id": i} for i in range(5)]
TEXTS: list[str] = [row["text"] for row in ROWS]


def texts(path: Path | str, **choice: Any) -> list[str]:
    source = Source(path=str(path), **choice)
    return [row.fields["text"] for row, _ in find_place(source).rows(wanted_columns(source))]


def refusal(path: Path | str, **choice: Any) -> str:
    with pytest.raises(TuneError) as refused:
        texts(path, **choice)
    return str(refused.value)


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        as_lines(ROWS),
        as_lines(ROWS) + b"\n\n  \n",
        b"\xef\xbb\xbf" + as_lines(ROWS),
        as_lines(ROWS).replace(b"\n", b"\r\n"),
        json.dumps(ROWS).encode(),
        b"\n \t" + json.dumps(ROWS, indent=2).encode(),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_lines_and_lists(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == TEXTS


def test_tables_and_saved_data_sets(tmp_path: Path) -> None:
    assert texts(write_parquet(tmp_path / "rows.parquet", ROWS)) == TEXTS
    assert texts(write_dataset(tmp_path / "saved", ROWS[:2], ROWS[2:])) == TEXTS
    splits = write_splits(tmp_path / "splits", train=ROWS[:3], test=ROWS[3:])
    assert texts(splits) == TEXTS[:3]
    assert texts(splits, split="test") == TEXTS[3:]
    assert refusal(splits, split="dev").endswith("splits has no split 'dev'; it has: train, test")


def test_rows_say_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + as_lines(ROWS))
    write_parquet(tmp_path / "rows.parquet", ROWS)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    found = {}
    for name in ("rows.jsonl", "rows.parquet", "rows.json"):
        source = Source(path=str(tmp_path / name))
        found[name] = [row.where for row, _ in find_place(source).rows({"text"})][-1]
    assert found == {
        "rows.jsonl": f"{tmp_path}/rows.jsonl line 6",
        "rows.parquet": f"{tmp_path}/rows.parquet row 5",
        "rows.json": f"{tmp_path}/rows.json row 5",
    }


def test_tables_fill_objects_with_nulls_that_nobody_wrote(tmp_path: Path) -> None:
    """Objects of a column have the same keys in a table; arguments of a call must not get those of others."""
    calls = [{"function": {"name": "f", "arguments": arguments}} for arguments in ({"a": 1}, {"b": 2})]
    rows = [{"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]} for call in calls]
    source = Source(path=str(write_parquet(tmp_path / "rows.parquet", rows)))
    read = [row.fields["messages"][0] for row, _ in find_place(source).rows({"messages"})]
    assert [message["tool_calls"][0]["function"]["arguments"] for message in read] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("where", ["saved", "rows.parquet"])
def test_objects_that_datasets_stores_as_json(tmp_path: Path, where: str) -> None:
    """`datasets` 5 keeps objects of many kinds as the extension type `arrow.json`."""
    messages = [{"role": "user", "content": None}, {"role": "assistant", "x": {"y": [1, None]}}]
    stored = pyarrow.array([[json.dumps(message) for message in messages]])
    table = pyarrow.table({"messages": stored.cast(pyarrow.list_(pyarrow.json_()))})
    if where == "saved":
        write_dataset(tmp_path / where, [{"messages": []}])
        with pyarrow.ipc.new_stream(str(tmp_path / where / "data-00000-of-00001.arrow"), table.schema) as out:
            out.write_table(table)
    else:
        parquet.write_table(table, tmp_path / where)
    source = Source(path=str(tmp_path / where))
    (row,) = (row for row, _ in find_place(source).rows({"messages"}))
    assert row.fields["messages"] == messages


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": ', " line 2 is not valid JSON: "),
        (b'{"text": "a"}\n"b"', " line 2 must be an object with columns, not str"),
        (b'{"text": "a"}\n{"text": "\xff"}', " line 2 is not UTF-8 text; convert the file first"),
        (b'{"text": "a"}\n{"text": "\\ud83d"}', " line 2 holds half of a surrogate pair"),
        (b'[{"text": "a"}, 5]', " row 2 must be an object with columns, not int"),
        (b'[{"text": "a"}', " is not valid JSON: "),
        (b"[" * 100_000, " is not valid JSON: "),
    ],
)
def test_broken_lines_are_refused_with_their_number(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file}{said}")


def test_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\\ud83d\\ude42"}')
    assert texts(tmp_path / "rows.jsonl") == ["🙂"]


def test_places_that_are_no_data(tmp_path: Path) -> None:
    assert "there is no file or folder '/no/such/place'" in refusal("/no/such/place")
    assert "there is no file or folder 'rows.jsonl'" in refusal("rows.jsonl")
    assert "there is no file or folder 'org/rows.jsonl'" in refusal("org/rows.jsonl")
    (tmp_path / "rows.csv").write_text("a,b")
    assert "its name must end in .jsonl, .json, .parquet" in refusal(tmp_path / "rows.csv")
    (tmp_path / "empty").mkdir()
    assert "has no files of rows: no *.jsonl, *.json, *.parquet" in refusal(tmp_path / "empty")
    (tmp_path / "rows.jsonl").write_bytes(as_lines(ROWS))
    assert "is one file; leave split ('test') out" in refusal(tmp_path / "rows.jsonl", split="test")
    assert "is one file; leave subset ('main') out" in refusal(tmp_path / "rows.jsonl", subset="main")
    (tmp_path / "bad.parquet").write_bytes(gzip.compress(b"x"))
    assert "bad.parquet cannot be read as a table" in refusal(tmp_path / "bad.parquet")


SHARDS = {
    "README.md": b"# Data",
    ".gitattributes": b"",
    "data/train-00000-of-00002.parquet": as_parquet(ROWS[:2]),
    "data/train-00001-of-00002.parquet": as_parquet(ROWS[2:4]),
    "data/test_prefs-00000-of-00001.parquet": as_parquet(ROWS[4:]),
    "data/rows.jsonl": as_lines(ROWS),
}
CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/*.jsonl
  - split: test
    path: [main/more/**]
- config_name: other
  data_files: other/rows.jsonl
---
# Data
"""
CONFIGS = {
    "README.md": CARD.encode(),
    "main/a.jsonl": as_lines(ROWS[:2]),
    "main/b.jsonl": as_lines(ROWS[2:3]),
    "main/more/deep/c.jsonl": as_lines(ROWS[3:4]),
    "other/rows.jsonl": as_lines(ROWS[4:]),
}
FOLDERS = {
    "main/train.jsonl": as_lines(ROWS[:2]),
    "main/valid.jsonl": as_lines(ROWS[2:3]),
    "socratic/train/rows.jsonl": as_lines(ROWS[3:]),
}
CHOICES: list[tuple[dict[str, bytes], dict[str, str], list[str] | str]] = [
    (SHARDS, {}, TEXTS[:4]),
    (SHARDS, {"split": "test_prefs"}, TEXTS[4:]),
    (SHARDS, {"split": "dev"}, "has no split 'dev'; it has: test_prefs, train"),
    (SHARDS, {"subset": "main"}, "has no subset 'main'; it has: none"),
    (CONFIGS, {}, TEXTS[:3]),
    (CONFIGS, {"split": "test"}, TEXTS[3:4]),
    (CONFIGS, {"subset": "other"}, TEXTS[4:]),
    (CONFIGS, {"subset": "mian"}, "has no subset 'mian'; it has: main, other"),
    (FOLDERS, {}, "has several subsets; choose one with subset: main, socratic"),
    (FOLDERS, {"subset": "main"}, TEXTS[:2]),
    (FOLDERS, {"subset": "main", "split": "validation"}, TEXTS[2:3]),
    (FOLDERS, {"subset": "socratic"}, TEXTS[3:]),
    ({"rows.jsonl": as_lines(ROWS)}, {}, TEXTS),
    ({"a.csv": b"x"}, {}, "has no files of rows"),
    ({"README.md": b"---\n- [\n---\n", "a.jsonl": b""}, {}, "does not begin with valid YAML"),
]


@pytest.mark.parametrize(("files", "choice", "expected"), CHOICES)
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_subsets_and_splits_of_repositories(
    hub: FakeHub,
    tmp_path: Path,
    where: str,
    files: dict[str, bytes],
    choice: dict[str, str],
    expected: list[str] | str,
) -> None:
    hub.add_repo("org/rows", files)
    for name, content in files.items():
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / name).write_bytes(content)
    path = "org/rows" if where == "hub" else tmp_path / "rows"
    if isinstance(expected, str):
        assert expected in refusal(path, **choice)
    else:
        assert texts(path, **choice) == expected


def test_a_data_set_is_fetched_once(hub: FakeHub) -> None:
    hub.add_repo("org/rows", SHARDS)
    assert texts("org/rows") == TEXTS[:4]
    assert hub.gets("data/train-00000-of-00002.parquet") == 1
    assert hub.gets("data/rows.jsonl") == hub.gets("data/test_prefs-00000-of-00001.parquet") == 0
    before = len(hub.log)
    hub.add_repo("org/rows", {"train.jsonl": as_lines(ROWS)})
    assert texts("org/rows") == TEXTS[:4]  # without asking
    assert len(hub.log) == before


def test_tables_that_the_hub_made(hub: FakeHub) -> None:
    hub.add_repo("org/rows", {"rows.csv": b"text\na"})
    hub.add_repo(
        "org/rows",
        {"default/train/0000.parquet": as_parquet(ROWS), "other/train/0000.parquet": as_parquet(ROWS[:1])},
        "refs/convert/parquet",
    )
    assert "the Hub may have made some: try org/rows@refs/convert/parquet" in refusal("org/rows")
    assert texts("org/rows@refs/convert/parquet") == TEXTS
    assert texts("org/rows@refs/convert/parquet", subset="other") == TEXTS[:1]


def test_revisions(hub: FakeHub) -> None:
    old = hub.add_repo("org/rows", {"train.jsonl": as_lines(ROWS[:1])})
    hub.add_repo("org/rows", {"train.jsonl": as_lines(ROWS[1:])}, "v2")
    assert texts("org/rows@v2") == TEXTS[1:]
    assert texts(f"org/rows@{old}") == TEXTS[:1]
    with pytest.raises(ResolveError, match="has no revision 'v3'"):
        texts("org/rows@v3")


def test_rows_of_the_hub_say_where_they_are(hub: FakeHub, made_of: Callable[..., Prepared]) -> None:
    hub.add_repo("org/rows", {"data/train.jsonl": as_lines([ROWS[0], {"id": 1}])})
    with pytest.raises(TuneError, match=r"org/rows data/train.jsonl line 2 has no column 'text'"):
        made_of([{"text": "a"}], eval="org/rows")


@pytest.mark.parametrize("trouble", ["missing", "gated", "corrupt", "offline", "status", "not_a_hub"])
def test_trouble_with_the_hub_is_said_in_words(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    hub.add_repo("org/rows", SHARDS, gated=trouble == "gated")
    if trouble == "corrupt":
        hub.corrupt.add("data/train-00001-of-00002.parquet")
    if trouble == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.status = 500 if trouble == "status" else None
    hub.not_a_hub = trouble == "not_a_hub"
    expected = {
        "missing": "there is no file or folder 'org/nothing', and no data set of that name on the Hub",
        "gated": f"datasets/org/rows is gated: accept its licence at {hub.endpoint}/datasets/org/rows",
        "corrupt": "data/train-00001-of-00002.parquet of org/rows arrived damaged",
        "offline": "the data set org/rows is not in the cache and the Hub at",
        "status": "it answers with HTTP status 500",
        "not_a_hub": "what answers there is not a Hub",
    }
    with pytest.raises(CorralError) as refused:
        texts("org/nothing" if trouble == "missing" else "org/rows")
    assert expected[trouble] in str(refused.value)
    if trouble == "corrupt":
        hub.corrupt.clear()
        assert texts("org/rows") == TEXTS[:4]


def test_a_mixture_of_places(
    hub: FakeHub, made_of: Callable[..., Prepared], chatml: PromptFormat, tmp_path: Path
) -> None:
    hub.add_repo("org/rows", SHARDS)
    prepared = made_of(
        [{"text": "mine"}], eval=["org/rows", str(write_parquet(tmp_path / "e.parquet", ROWS))]
    )
    assert prepared.eval is not None
    said = [text_of(as_example(item), chatml.tokenizer) for item in prepared.eval]
    assert said == [f"{text}<|endoftext|>" for text in [*TEXTS[:4], *TEXTS]]
