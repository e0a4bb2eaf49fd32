"""Configurations as YAML files and `key=value` settings; errors name the key and the nearest one."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from corral.tune.config import RunConfig
from corral.tune.errors import TuneError

_MOST_BYTES = 2**20


def read_config(file: Path | None, settings: Iterable[str] = (), **given: Any) -> RunConfig:
    """The configuration of a file, changed by settings like "optimizer.lr=1e-4" and by other values.

    Args:
        file: YAML; None for the defaults alone.
        settings: `key=value` with dots between sections; the value is YAML, so that lists and numbers are
            written as there. Later ones win.
        given: top-level keys that count more than either, where they are not None.

    Raises:
        TuneError: the file cannot be read, a key is unknown, or a value is of the wrong type or out of range.
    """
    values = {} if file is None else _read(file)
    for setting in settings:
        _set(values, setting)
    values |= {key: value for key, value in given.items() if value is not None}
    return checked_config(values, "the configuration" if file is None else str(file))


def checked_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """A configuration of plain data.

    Raises:
        TuneError: as `read_config`; `where` says where the values come from.
    """
    try:
        # By way of JSON: its lists may be tuples and its whole numbers floats, and nothing else is converted.
        return RunConfig.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise TuneError(f"{where}: {_sentence(error)}") from None
    except (TypeError, ValueError) as error:
        raise TuneError(f"{where}: a value is no text, number, list or mapping: {error}") from None


def to_yaml(config: RunConfig) -> str:
    """All settings, those by default included, as `read_config` reads them."""
    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    return text


def _read(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TuneError(f"{file} cannot be read: {error.strerror or error}") from None
    if len(content) > _MOST_BYTES:
        raise TuneError(f"{file} has {len(content):,} bytes; a configuration has {_MOST_BYTES:,} at most")
    try:
        values = yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise TuneError(f"{file} is not UTF-8 text at byte {error.start}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TuneError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TuneError(f"{file} must be a mapping of settings like `model: NAME`, not {_kind(values)}")
    return values


def _set(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise TuneError(f"--set {setting}: write it as key=value, for instance optimizer.lr=1e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TuneError(f"--set {setting}: not valid YAML: {' '.join(str(error).split())}") from None
    section = values
    for name in path[:-1]:
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
        if not isinstance(inner, dict):
            raise TuneError(f"--set {setting}: {name} is {_kind(inner)} in the file, without keys of its own")
        section = inner
    section[path[-1]] = value


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can make a small file enormous, and with each key once."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not used in configurations")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} stands twice; remove one")
        return super().construct_mapping(node, deep)


# YAML 1.1 asks for a dot in 1e-4; here it is the number that everybody means.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong; of a union's alternatives the one that is meant."""
    first = max(error.errors(), key=lambda one: (one["type"] == "extra_forbidden", len(one["loc"])))
    path = [str(part) for part in first["loc"] if not _is_alternative(part)]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        section = _section_at(path[:-1])
        known = list(section.model_fields) if section is not None else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}" if known else ""
        return f"{key} is no setting{hint}"
    if first["type"] == "missing":
        return f"{key} is missing; give it in the file or with --set {key}=..."
    message = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key} is {json.dumps(first['input'], default=str)}; it must be {message}"


def _is_alternative(part: str | int) -> bool:
    """Whether a part of a location names the alternative of a union, not a key."""
    return isinstance(part, str) and (part[:1].isupper() or part in ("str", "int", "float") or "[" in part)


def _section_at(path: list[str]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = RunConfig
    for name in path:
        if name.isdigit():
            continue
        field = section.model_fields.get(name) if section is not None else None
        section = None if field is None else next(_sections(field.annotation), None)
    return section


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list):
        for inner in get_args(annotation):
            yield from _sections(inner)


def _kind(value: Any) -> str:
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), type(value).__name__)
