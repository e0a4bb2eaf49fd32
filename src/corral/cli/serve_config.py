"""The configuration file of `corral serve`: YAML whose names are those of the flags.

Its values become the defaults of the flags, so that a flag, or its environment variable, goes before.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import typer

from corral.cli.options import Running
from corral.cli.serve_options import Address, Keys, Limits, Observability, Served
from corral.errors import ConfigError

if TYPE_CHECKING:
    import yaml

_MOST_BYTES = 2**20


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes a file's values the defaults of the command's other options; the callback of `--config`.

    Raises:
        ConfigError: the file cannot be used; the message names it and the line.
    """
    if path is not None and not context.resilient_parsing:
        context.default_map = read_config(path)
    return path


def read_config(path: Path) -> dict[str, Any]:
    """The values of a file, by the names of the command's parameters.

    Raises:
        ConfigError: the file cannot be read, or says what no option is, or can be.
    """
    kinds = _kinds()
    known = {name.replace("_", "-"): name for name in kinds}
    values: dict[str, Any] = {}
    for place, key, value in _entries(path):
        flag = key.replace("_", "-")
        if flag not in known:
            raise ConfigError(f"{place}: {key!r} is no setting{_nearest(flag, list(known))}")
        if known[flag] in values:
            raise ConfigError(f"{place}: {key!r} stands twice; remove one")
        if value is not None:
            values[known[flag]] = _checked(f"{place}: {key}", kinds[known[flag]], value)
    return values


def _entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    """The keys of the file with their values, and where they stand."""
    import yaml

    loader_class = _loader()
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB; that is no configuration")
        loader = loader_class(text)
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} is no list of settings; write one in each line, like port: 8000")
        for key, value in root.value:
            place = f"{path}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{place}: this is no name of a setting")
            yield place, str(key.value), _constructed(loader, f"{place}: {key.value}", value)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(_in_words(path, error)) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None


def _constructed(loader: yaml.SafeLoader, place: str, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except ValueError:  # of a date, or a number, that is none
        raise ConfigError(f"{place} cannot be read; write it in quotes if it is a text") from None


def _loader() -> type[yaml.SafeLoader]:
    """A safe loader for which `off`, `no` and the like are texts, as they are in YAML 1.2."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(boolean, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    return Loader


def _kinds() -> dict[str, set[Any]]:
    """What each option of `corral serve` may be, but for --config itself."""
    kinds: dict[str, set[Any]] = {"model": {str}}
    for group in (Served, Address, Keys, Limits, Observability, Running):
        for name, hint in get_type_hints(group).items():
            kinds[name] = set(get_args(hint) if isinstance(hint, UnionType) else (hint,))
    return kinds


def _checked(place: str, kinds: set[Any], value: Any) -> Any:
    """A value as the option takes it."""
    if list[str] in kinds:
        members = value if isinstance(value, list) else [value]
        return [_text(place, member) for member in members]
    if bool in kinds:
        return _of_type(place, value, (bool,), "true or false")
    if int in kinds:
        return _of_type(place, value, (int,), "a whole number")
    if float in kinds:
        return _of_type(place, value, (int, float), "a number")
    return _text(place, value)


def _text(place: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{place} is {short(value):.100}; it must be a text")
    return str(value)


def _of_type(place: str, value: Any, kinds: tuple[type, ...], wanted: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{place} is {short(value):.100}; it must be {wanted}")
    return value


def _nearest(flag: str, known: list[str]) -> str:
    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "; `corral serve --help` lists them"


def _in_words(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be read"
    where = "" if mark is None else f", line {mark.line + 1}"
    return f"{path}{where}: this is no YAML: {problem}"
