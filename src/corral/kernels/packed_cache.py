"""Packed weights on disk, so that the second start of a model maps them instead of packing them again.

The name of a file follows from the paths of the source and from what was chosen, so that a changed source
overwrites its old file, and so does changed code that packs. Files appear whole or not at all; those that are
damaged, foreign or out of date are as good as absent and are written anew. The least recently used go when
all take more than their bound.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from corral.checkpoints.cache import cache_folder, size_in_words, sweep
from corral.errors import ResolveError
from corral.kernels.memory import Memory
from corral.kernels.packed_file import (
    VERSION,
    PackedWeights,
    StoppedError,
    plan,
    read_entries,
    read_header,
    read_weights,
    write,
)

if TYPE_CHECKING:
    from corral.kernels.packed import PackedMatrix

_SUFFIX = ".packed"
_SAMPLE = 1 << 16  # bytes at both ends of a source file that its identity depends on
_LEFT_FREE = 1 << 30  # bytes that stay free on the disk
_DEFAULT_LIMIT = 32 * 10**9
_PACKING_CODE = (
    "checkpoints",
    "kernels",
    "model",
    "quant",
)  # all that lies between a source and packed bytes
_LIMIT = "CORRAL_PACKED_CACHE_GB"

Choices = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache: what it was made from, how, its bytes, and when it was last used (Unix time)."""

    file: Path
    sources: tuple[str, ...]
    choices: Choices
    num_bytes: int
    last_used: float


@dataclass(frozen=True)
class CacheKey:
    """Which weights are meant: `sources` identifies the files, `choices` how they are packed."""

    paths: tuple[str, ...]
    sources: tuple[tuple[int, int, str], ...]
    choices: tuple[tuple[str, str | int | float | bool | None], ...]
    code: str

    @classmethod
    def of(cls, files: Sequence[Path], choices: Choices) -> CacheKey:
        """The key of a model in some files: their paths, sizes, times of change, and a hash of their ends."""
        resolved = [file.resolve() for file in files]
        return cls(
            tuple(str(file) for file in resolved),
            tuple(_identity(file) for file in resolved),
            tuple(sorted(choices.items())),
            _packing_code(),
        )

    @property
    def file_name(self) -> str:
        """The same for all versions of the source files."""
        text = json.dumps([VERSION, self.paths, self.choices])
        return hashlib.sha256(text.encode()).hexdigest()[:32] + _SUFFIX


class PackedCache:
    """The packed weights in a folder: by default `packed` in Corral's cache (`CORRAL_CACHE`).

    `limit` bounds the bytes of all files; by default `CORRAL_PACKED_CACHE_GB` (0 for no cache), else 32 GB.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or cache_folder() / "packed"
        self.limit = _limit_in_bytes() if limit is None else limit

    def load(
        self, key: CacheKey, memory: Memory | None = None, *, check_content: bool = False
    ) -> PackedWeights | None:
        """The weights of a key, or None if they are not there whole and up to date.

        They are mapped from the file, or with `memory` read into that: slower to start, and a little faster
        to run, for most file systems have no huge pages. `check_content` reads all of it for its checksums.
        """
        file = self.folder / key.file_name
        try:
            with file.open("rb") as stream:
                header = read_header(stream)
                if header["key"] != _as_json(asdict(key)):
                    return None
                weights = read_weights(header, read_entries(stream, header, memory), check_content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return None  # whatever is wrong with it: it is packed and written anew
        with suppress(OSError):  # a folder that cannot be written
            os.utime(file)  # the time of its last use
        return weights

    def store(
        self,
        key: CacheKey,
        matrices: Mapping[str, PackedMatrix],
        tensors: Mapping[str, NDArray[Any]],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> str | None:
        """Keeps packed weights, and removes others beyond the limit. A sentence says why if it cannot.

        `tensors` are small ones, of type float32, float16, uint16 or int64. Where `is_stopped` says so, the
        work ends soon and nothing is left of it.
        """
        header, pieces = plan(asdict(key), matrices, tensors)
        total = int(header["length"])
        if total > self.limit:
            if self.limit == 0:
                return None
            return (
                f"The packed weights ({size_in_words(total)}) are not kept: the cache may hold "
                f"{size_in_words(self.limit)} ({_LIMIT} says how much)."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder.glob(f".*{_SUFFIX}.*"))
            self._make_room(total, spared=key.file_name)
            if shutil.disk_usage(self.folder).free < total + _LEFT_FREE:
                return f"The packed weights are not kept: the disk of {self.folder} is nearly full."
            write(self.folder / key.file_name, header, pieces, is_stopped)
        except StoppedError:
            return None
        except (OSError, ResolveError) as error:
            return f"The packed weights are not kept, so that the next start takes as long: {error}"
        return None

    def list_entries(self) -> list[CacheEntry]:
        """What is kept, the most recently used first. Damaged files are among it, without sources."""
        entries = []
        for file in self._files():
            try:
                status = file.stat()
            except OSError:
                continue
            entries.append(CacheEntry(file, *_origin(file), status.st_size, status.st_mtime))
        return sorted(entries, key=lambda entry: (-entry.last_used, entry.file.name))

    def clear(self) -> int:
        """Removes all files of the cache and gives the bytes that they took. Those in use stay readable."""
        return sum(_remove(entry) for entry in self.list_entries())

    def _files(self) -> Iterator[Path]:
        return self.folder.glob(f"*{_SUFFIX}")

    def _make_room(self, needed: int, spared: str) -> None:
        entries = [entry for entry in self.list_entries() if entry.file.name != spared]
        total = needed + sum(entry.num_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit:
                break
            total -= _remove(entry)


@cache
def _packing_code() -> str:
    """A hash of the modules that decide the packed bytes; a constant where there are no sources of them."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in _PACKING_CODE:
        for file in sorted((package / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _limit_in_bytes() -> int:
    try:
        return max(0, int(float(os.environ.get(_LIMIT, "")) * 1e9))
    except (ValueError, OverflowError):
        return _DEFAULT_LIMIT


def _identity(file: Path) -> tuple[int, int, str]:
    status = file.stat()
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(0, status.st_size - _SAMPLE))
        digest.update(stream.read(_SAMPLE))
    return status.st_size, status.st_mtime_ns, digest.hexdigest()


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _origin(file: Path) -> tuple[tuple[str, ...], Choices]:
    """The sources and the choices of a file; nothing of a damaged one."""
    try:
        with file.open("rb") as stream:
            key = read_header(stream)["key"]
        return tuple(str(path) for path in key["paths"]), dict(key["choices"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return (), {}


def _remove(entry: CacheEntry) -> int:
    """The bytes that went, 0 if the file could not be removed."""
    try:
        entry.file.unlink()
    except OSError:
        return 0
    return entry.num_bytes
