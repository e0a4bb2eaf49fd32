"""A JSON object of settings, read field by field; what nobody reads is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from corral.errors import ConfigError

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})


class Fields:
    """The fields of an object; `where` is its name in errors, such as "quantization_config"."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields, self.where = fields, where
        self._read: set[str] = set()

    def value(self, *names: str) -> Any:
        """The value of the first of some synonyms that is there and not null, or None."""
        self._read.update(names)
        return next((self._fields[name] for name in names if self._fields.get(name) is not None), None)

    def choice(self, *names: str, among: Collection[Any], default: Any = None) -> Any:
        """One of some values; without a default it must be there."""
        value = self.value(*names)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{self.where}.{names[0]} is missing")
        value = value.lower() if isinstance(value, str) else value
        if isinstance(value, list | dict) or value not in among:
            known = ", ".join(str(each) for each in among)
            raise ConfigError(f"{self.where}.{names[0]} is {value!r}; Corral reads {known}")
        return value

    def flag(self, *names: str, default: bool) -> bool:
        """A true or false."""
        value = self.value(*names)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.where}.{names[0]} is {value!r}; it must be true or false")
        return default if value is None else value

    def group_size(self, *names: str) -> int | None:
        """Columns of a group; None stands for -1, all columns of a row."""
        value = self.value(*names)
        if value is None:
            raise ConfigError(f"{self.where}.{names[0]} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
            raise ConfigError(
                f"{self.where}.{names[0]} is {value!r}; it must be a number of columns, or -1 for all"
            )
        return None if value == -1 else value

    def number(self, name: str) -> float | None:
        """A positive number, or None."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ConfigError(f"{self.where}.{name} is {value!r}; it must be a positive number")
        return float(value)

    def names(self, *names: str) -> tuple[str, ...]:
        """A list of texts; none if it is missing."""
        value = self.value(*names)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise ConfigError(f"{self.where}.{names[0]} is {value!r}; it must be a list of names")
        return tuple(value or ())

    def objects(self, name: str) -> dict[str, Any]:
        """An object of objects; empty if it is missing."""
        value = self.value(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise ConfigError(f"{self.where}.{name} must be an object that holds objects")
        return value

    def refuse(self, name: str, harmless: Collection[Any] = ()) -> None:
        """Refuses a setting that would change the weights, unless it says nothing or what is harmless."""
        value = self.value(name)
        if value not in _NOTHING and value not in harmless:
            raise ConfigError(f"{self.where}.{name} is {value!r}, which Corral does not read")

    def close(self, without_effect: str) -> None:
        """Refuses what was not read and is not among the names (in one text) that change no weights."""
        known = without_effect.split()
        for name, value in self._fields.items():
            if name not in self._read and name not in known and value not in _NOTHING:
                raise ConfigError(
                    f"{self.where}.{name} is {value!r}, which Corral does not know and will not ignore; "
                    "remove it if it does not change what the weights mean"
                )
