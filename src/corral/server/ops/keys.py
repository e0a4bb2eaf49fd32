"""API keys: where they come from, and whether one that was presented is among them.

Of a key only its SHA-256 is kept: nothing that is logged or printed by mistake shows one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from corral.errors import ConfigError

_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


@dataclass(frozen=True)
class ApiKey:
    """A key, by the name that logs show and the SHA-256 of what clients present."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, name: str, key: str) -> ApiKey:
        """A key from its text.

        Raises:
            ConfigError: the text can be no key; it is not shown.
        """
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"the key {name!r} is no key: it must be 1 to 512 printable ASCII characters without spaces"
            )
        return cls(name, _digest(key.encode("ascii")))


class KeyRing:
    """The keys that open the server: `api` ones its ordinary routes, `admin` ones all of them."""

    def __init__(self, api: Sequence[ApiKey] = (), admin: Sequence[ApiKey] = ()) -> None:
        self.has_api, self.has_admin = bool(api), bool(admin)
        self._keys = [(key, False) for key in api] + [(key, True) for key in admin]

    def find(self, presented: Iterable[bytes]) -> tuple[ApiKey, bool] | None:
        """The key that was presented, and whether it is an admin key; None where none of these is known.

        Takes the same time for every text: all keys are compared, and only hashes of them.
        """
        found: tuple[ApiKey, bool] | None = None
        for text in presented:
            digest = _digest(text)
            for key, is_admin in self._keys:
                if hmac.compare_digest(digest, key.digest):
                    found = (key, is_admin) if found is None or is_admin else found
        return found


def read_key_file(path: Path, *, prefix: str = "key") -> list[ApiKey]:
    """The keys of a file: one in each line, alone or as `name=key`; lines that begin with # are comments.

    A key without a name is called after its line: `key-3`. What stands before the first = is a name if it
    has the form of one; write a name before a key that has an = of its own.

    Raises:
        ConfigError: the file cannot be read, has no key, or a line of it is none; no key is shown.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"the key file {path} is no text in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror or error}") from None
    keys = [
        _line_key(f"{path}, line {number}", f"{prefix}-{number}", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not keys:
        raise ConfigError(f"the key file {path} has no key; write one in each line")
    return keys


def check_keys(api: Sequence[ApiKey], admin: Sequence[ApiKey]) -> None:
    """Raises ConfigError where two keys share a name, or one key stands twice."""
    names: set[str] = set()
    digests: dict[bytes, str] = {}
    for key in (*api, *admin):
        if key.name in names:
            raise ConfigError(f"two keys are called {key.name!r}; give each a name of its own")
        if key.digest in digests:
            raise ConfigError(
                f"the keys {digests[key.digest]!r} and {key.name!r} are the same; "
                "each user, and the admin, needs one of their own"
            )
        names.add(key.name)
        digests[key.digest] = key.name


def _line_key(place: str, default: str, line: str) -> ApiKey:
    name, equals, key = line.partition("=")
    named = bool(equals and key.strip() and _NAME.fullmatch(name.strip()))
    try:
        return ApiKey.of(name.strip(), key.strip()) if named else ApiKey.of(default, line)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
