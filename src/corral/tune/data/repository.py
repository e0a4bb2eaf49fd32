"""Which files of a data set's repository hold the rows of a subset and a split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml

from corral.tune.config import Source
from corral.tune.data.rows import SUFFIXES
from corral.tune.errors import TuneError

CARD = "README.md"
_DEFAULT = "default"

# What the names of folders and files call splits.
_SPLITS: Mapping[str, str] = MappingProxyType(
    {
        name: split
        for split, names in {
            "train": ("train", "training"),
            "validation": ("validation", "valid", "val", "dev"),
            "test": ("test", "testing", "eval", "evaluation"),
        }.items()
        for name in names
    }
)
_SHARD = re.compile(r"(?:.*/)?(?P<split>\w+)-\d{5}-of-\d{5}(?:-\w+)?\.\w+")
_NO_ROWS = ("dataset_infos.json", "dataset_info.json", "state.json", "config.json", "package.json")


def choose_files(names: Iterable[str], card: str, source: Source) -> list[str]:
    """The files of a repository, given by their paths in it, that hold the rows of a source, in order.

    The `configs` of its card decide; without, the names of files and folders do, as `datasets` reads them:
    `<subset>/<split>-00000-of-00002.parquet`, `data/train.jsonl`, `test/rows.jsonl`.

    Raises:
        TuneError: there is no such subset or split, several subsets and none is chosen, or no file of rows.
    """
    files = data_files(names)
    configs = _configs(card, source)
    splits = _chosen_config(configs, source, files) if configs else _by_names(_one_subset(files, source))
    chosen = splits.get(source.split) or splits.get(_SPLITS.get(source.split, source.split))
    if not chosen:
        raise TuneError(
            f"{source.path} has no split {source.split!r}; it has: {', '.join(sorted(splits)) or 'none'}"
        )
    return chosen


def data_files(names: Iterable[str]) -> list[str]:
    """The files of rows among those of a repository: all of one kind, of which tables are preferred."""
    visible = [
        name
        for name in sorted(names)
        if not any(part.startswith((".", "__")) for part in name.split("/"))
        and name.rpartition("/")[2] not in _NO_ROWS
    ]
    for suffix in (".parquet", ".jsonl", ".json"):
        if files := [name for name in visible if name.endswith(suffix)]:
            return files
    return []


def _one_subset(files: Sequence[str], source: Source) -> list[str]:
    if not files:
        raise TuneError(f"{source.path} has no files of rows: no {', '.join('*' + s for s in SUFFIXES)}")
    subsets = sorted({name for file in files if (name := _subset(file))})
    if source.subset is not None:
        if source.subset not in subsets:
            raise _no_subset(source, subsets)
        return [file for file in files if _subset(file) == source.subset]
    if _DEFAULT in subsets:
        return [file for file in files if _subset(file) == _DEFAULT]
    if len(subsets) > 1:
        raise TuneError(f"{source.path} has several subsets; choose one with subset: {', '.join(subsets)}")
    return list(files)


def _subset(file: str) -> str | None:
    """The first folder that is neither a split's nor called data."""
    folders = file.split("/")[:-1]
    return next((name for name in folders if name != "data" and name not in _SPLITS), None)


def _by_names(files: Sequence[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_split(file), []).append(file)
    return splits


def _split(file: str) -> str:
    shard = _SHARD.fullmatch(file)
    if shard is not None:
        return shard["split"]
    words = re.split(r"[^a-z0-9]+", file.lower())
    return next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), "train")


def _configs(card: str, source: Source) -> list[dict[str, Any]]:
    """The `configs` of a card that name files."""
    parts = card.replace("\r\n", "\n").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return []
    try:
        fields = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        raise TuneError(f"the card of {source.path} ({CARD}) does not begin with valid YAML") from None
    configs = fields.get("configs") if isinstance(fields, dict) else None
    listed = configs if isinstance(configs, list) else []
    return [config for config in listed if isinstance(config, dict) and config.get("data_files")]


def _chosen_config(
    configs: Sequence[dict[str, Any]], source: Source, files: Sequence[str]
) -> dict[str, list[str]]:
    names = [str(config.get("config_name", _DEFAULT)) for config in configs]
    if source.subset is not None and source.subset not in names:
        raise _no_subset(source, names)
    if source.subset is not None:
        config = configs[names.index(source.subset)]
    else:
        main = [c for c, name in zip(configs, names, strict=True) if c.get("default") or name == _DEFAULT]
        if not main and len(configs) > 1:
            raise TuneError(f"{source.path} has several subsets; choose one with subset: {', '.join(names)}")
        config = (main or configs)[0]
    return _files_of_config(config, files)


def _files_of_config(config: Mapping[str, Any], files: Sequence[str]) -> dict[str, list[str]]:
    folder = str(config.get("data_dir") or "").strip("/")
    listed = config["data_files"]
    entries = listed if isinstance(listed, list) else [listed]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (
            ("train", entry) if isinstance(entry, str) else (entry.get("split", "train"), entry.get("path"))
        )
        for path in [paths] if isinstance(paths, str) else paths or []:
            pattern = _pattern(f"{folder}/{path}" if folder else str(path))
            splits.setdefault(str(split), []).extend(file for file in files if pattern.fullmatch(file))
    return {split: found for split, found in splits.items() if found}


def _pattern(glob: str) -> re.Pattern[str]:
    """A pattern of paths: `**` goes through folders, `*` stays in one."""
    out = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?)", glob.removeprefix("./")):
        out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
    return re.compile(out)


def _no_subset(source: Source, subsets: Sequence[str]) -> TuneError:
    return TuneError(f"{source.path} has no subset {source.subset!r}; it has: {', '.join(subsets) or 'none'}")
