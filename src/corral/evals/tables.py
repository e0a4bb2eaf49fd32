"""Columns of tables: Parquet files, and the folders in which Hugging Face's `datasets` saves a dataset.

`Dataset.save_to_disk` writes `state.json`, which lists files in the Arrow stream format, and
`dataset_info.json`; `DatasetDict.save_to_disk` writes `dataset_dict.json` and such a folder for each split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corral.evals.errors import EvalError

if TYPE_CHECKING:
    import pyarrow

    _Batches = Callable[[Sequence[str]], Iterator[pyarrow.RecordBatch]]

_SPLITS, _STATE = "dataset_dict.json", "state.json"
_BATCH = 4096  # rows of a Parquet file that exist as Python objects at once


def is_table(source: Path) -> bool:
    """Whether this is a Parquet file by its name, or a folder that `datasets` saved."""
    try:
        return source.suffix.lower() == ".parquet" or any((source / f).is_file() for f in (_SPLITS, _STATE))
    except (OSError, ValueError):  # a name that no file can have
        return False


def table_column(source: Path, names: Sequence[str]) -> tuple[str, Iterator[Any]]:
    """The first of some columns that a table has: its name, and its values row by row.

    Raises:
        EvalError: it is no such table, is damaged, has none of the columns, has several splits, or pyarrow is
            not installed; the values raise it too.
    """
    open_table = _parquet if source.suffix.lower() == ".parquet" else _dataset
    with _Reading(source):
        schema, batches_of = open_table(source)
    name = next((name for name in names if schema.get_field_index(name) >= 0), None)
    if name is None:
        wanted, found = " or ".join(map(repr, names)), ", ".join(schema.names) or "none"
        raise EvalError(f"{source} has no column {wanted}; its columns are: {found}")
    return name, (row[name] for row in _rows(source, [name], batches_of([name])))


def table_rows(source: Path, wanted: Collection[str]) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The names of all columns of a table, and its rows with those of some columns that it has.

    A table gives all objects of a column the same keys: those without a value are left out. Values that are
    stored as JSON, as `datasets` does with objects of many kinds, are what that says.

    Raises:
        EvalError: as `table_column`, but for missing columns.
    """
    open_table = _parquet if source.suffix.lower() == ".parquet" else _dataset
    with _Reading(source):
        schema, batches_of = open_table(source)
    names = [name for name in schema.names if name in wanted]
    return list(schema.names), _plain_rows(source, schema, _rows(source, names, batches_of(names)))


def _plain_rows(
    source: Path, schema: pyarrow.Schema, rows: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    plain = {field.name: _reader(field.type) for field in schema}
    for row in rows:
        with _Reading(source):
            full = {name: plain[name](value) for name, value in row.items()}
        yield full


def _reader(kind: pyarrow.DataType) -> Callable[[Any], Any]:
    """What makes a value of some type plain data."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        is_json = getattr(kind, "extension_name", "") == "arrow.json"
        return _from_json if is_json else _reader(kind.storage_type)
    if types.is_struct(kind):
        inner = {field.name: _reader(field.type) for field in kind}
        return lambda value: value and {k: inner[k](v) for k, v in value.items() if v is not None}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _reader(kind.value_type)
        return lambda values: values and [item(value) for value in values]
    return lambda value: value


def _from_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _rows(
    source: Path, names: Sequence[str], batches: Iterator[pyarrow.RecordBatch]
) -> Iterator[dict[str, Any]]:
    with _Reading(source):
        for batch in batches:
            for name in names:
                if batch.schema.get_field_index(name) < 0:
                    raise EvalError(f"{source} holds files with other columns: one has no {name!r}")
            yield from batch.select(list(names)).to_pylist()


def _parquet(source: Path) -> tuple[pyarrow.Schema, _Batches]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(source)
    return file.schema_arrow, lambda names: file.iter_batches(columns=list(names), batch_size=_BATCH)


def _dataset(folder: Path) -> tuple[pyarrow.Schema, _Batches]:
    import pyarrow

    files = _files(folder)
    with pyarrow.memory_map(str(files[0])) as first:
        schema = pyarrow.ipc.open_stream(first).schema
    return schema, lambda _: _streamed(files)


def _streamed(files: Sequence[Path]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    for file in files:
        with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            yield from stream


def _files(folder: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in their order."""
    if (folder / _SPLITS).is_file():
        splits = _object(folder / _SPLITS).get("splits")
        names = ", ".join(map(str, splits)) if isinstance(splits, list) and splits else "none"
        raise EvalError(f"{folder} holds a dataset with several splits; name the folder of one: {names}")
    state = _object(folder / _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise EvalError(
            f"{folder} holds a selection of rows by their numbers, as old versions of datasets saved it; "
            "call flatten_indices() on the dataset, and save it again"
        )
    listed = state.get("_data_files")
    entries = listed if isinstance(listed, list) else []
    files = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    if not files or not all(isinstance(name, str) and name == Path(name).name for name in files):
        raise EvalError(f"{folder / _STATE} lists no files of its folder under _data_files")
    return [folder / str(name) for name in files]


def _object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise EvalError(f"{path} must hold a JSON object")
    return fields


class _Reading:
    """Says in words what goes wrong with a table while it is read."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "pyarrow":
            raise EvalError(
                f"{self._source} can be read with pyarrow, which is not installed: pip install 'corral[data]'"
            ) from None
        if error is None:
            return
        if isinstance(error, OSError) and error.errno:
            raise EvalError(f"{self._source} cannot be read: {os.strerror(error.errno)}") from None
        import pyarrow

        if isinstance(error, OSError | ValueError | pyarrow.ArrowException):
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise EvalError(f"{self._source} cannot be read as a table: {said}") from None
