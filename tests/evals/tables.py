"""Tables as their writers leave them: Parquet files, and folders of Hugging Face's `datasets`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], rows_of_a_group: int = 2) -> Path:
    """A Parquet file of several row groups."""
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=rows_of_a_group)
    return path


def write_dataset(folder: Path, *files: Sequence[dict[str, Any]]) -> Path:
    """What `Dataset.save_to_disk` of datasets 5.2.0 leaves, with one file for each list of rows."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(files):05}.arrow" for i in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        table = pyarrow.Table.from_pylist(list(rows))
        with (
            pyarrow.OSFile(str(folder / name), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table, max_chunksize=2)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "1f1c13c739cd6878",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), "utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "description": ""}), "utf-8")
    return folder


def write_splits(folder: Path, **splits: Sequence[dict[str, Any]]) -> Path:
    """What `DatasetDict.save_to_disk` leaves."""
    for name, rows in splits.items():
        write_dataset(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}), "utf-8")
    return folder
