"""Packed weights on disk, so that the second start of a model maps them instead of packing them again.

One file holds all packed matrices and small tensors of a model:

    bytes 0-7     the magic
    bytes 8-15    version of this format and of the packed layout, uint64, little-endian
    bytes 16-23   length of the header, uint64
    bytes 24-55   SHA-256 of the header
    from 64       the header: JSON (see `_Header`)
    from 2 MiB    (a multiple of it, after the header) the entries, each at a multiple of 64 bytes

The name of a file follows from the paths of the source and from what was chosen, so that a changed source
overwrites its old file, and so does changed code that packs. Files appear whole or not at all; those that are
damaged, foreign or out of date are as good as absent and are written anew. The least recently used go when
all take more than their bound.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from corral.checkpoints.cache import cache_folder, size_in_words, sweep, whole_file
from corral.errors import ResolveError
from corral.kernels.layout import Codes, Layout, Scales
from corral.kernels.memory import ALIGNMENT, HUGE_PAGE, Memory

if TYPE_CHECKING:
    from corral.kernels.packed import PackedMatrix

VERSION = 2
"""Changes with this format and with every change of the packed layout."""

_MAGIC = b"CORRALPW"
_START = struct.Struct("<8sQQ32s")
_HEADER_AT = 64
_MOST_HEADER = 64 << 20
_SUFFIX = ".packed"
_SAMPLE = 1 << 16  # bytes at both ends of a source file that its identity depends on
_LEFT_FREE = 1 << 30  # bytes that stay free on the disk
_DEFAULT_LIMIT = 32 * 10**9
_AT_ONCE = 8 << 20  # bytes that a thread reads or writes before it looks up
_READERS = 4  # threads: one alone reads less than the memory can take
_PACKING_CODE = (
    "checkpoints",
    "kernels",
    "model",
    "quant",
)  # all that lies between a source and packed bytes
_LIMIT = "CORRAL_PACKED_CACHE_GB"
_TENSOR_TYPES = ("float32", "float16", "uint16", "int64")

Choices = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class PackedWeights:
    """What a file holds. Mapped matrices share the file's memory with every process that maps it."""

    matrices: dict[str, PackedMatrix]
    tensors: dict[str, NDArray[Any]]


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
                header = _header(stream)
                if header["key"] != _as_json(asdict(key)):
                    return None
                weights = _read(header, _entries(stream, header, memory), check_content)
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
        header, pieces = _plan(key, matrices, tensors)
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
            _write(self.folder / key.file_name, header, pieces, is_stopped)
        except _StoppedError:
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


class _StoppedError(Exception):
    """Nobody waits for the file any more."""


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


def _plan(
    key: CacheKey, matrices: Mapping[str, PackedMatrix], tensors: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Any], list[tuple[int, NDArray[np.uint8]]]]:
    """The header, and the bytes of the entries with their places after the header."""
    at = 0
    pieces = []
    header: dict[str, Any] = {"key": asdict(key), "matrices": {}, "tensors": {}}
    for name, matrix in matrices.items():
        header["matrices"][name] = {
            **_layout_to_json(matrix.layout),
            "at": at,
            "crc32": zlib.crc32(matrix.data.data),
        }
        pieces.append((at, matrix.data))
        at = _aligned(at + matrix.num_bytes, ALIGNMENT)
    for name, tensor in tensors.items():
        assert tensor.dtype.name in _TENSOR_TYPES, tensor.dtype
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        kind = {"dtype": tensor.dtype.name, "shape": list(tensor.shape)}
        header["tensors"][name] = {**kind, "at": at, "crc32": zlib.crc32(data.data)}
        pieces.append((at, data))
        at = _aligned(at + len(data), ALIGNMENT)
    header |= {"data_at": 0, "length": 0}
    room = len(json.dumps(header)) + 64  # for the digits of the two
    header["data_at"] = _aligned(_HEADER_AT + room, HUGE_PAGE)
    header["length"] = header["data_at"] + at
    return header, pieces


def _write(
    file: Path,
    header: Mapping[str, Any],
    pieces: Sequence[tuple[int, NDArray[np.uint8]]],
    is_stopped: Callable[[], bool],
) -> None:
    text = json.dumps(header).encode()
    with whole_file(file) as stream:
        stream.write(_START.pack(_MAGIC, VERSION, len(text), hashlib.sha256(text).digest()))
        stream.seek(_HEADER_AT)
        stream.write(text)
        for at, data in pieces:
            stream.seek(header["data_at"] + at)
            for start in range(0, len(data), _AT_ONCE):
                if is_stopped():
                    raise _StoppedError
                stream.write(data[start : start + _AT_ONCE].data)
        stream.truncate(header["length"])


def _header(stream: BufferedReader) -> dict[str, Any]:
    """The header of a file that is whole, as far as the header tells.

    Raises:
        ValueError: the file is damaged, or of another kind or version.
    """
    magic, version, length, digest = _START.unpack(stream.read(_START.size).ljust(_START.size, b"\0"))
    if magic != _MAGIC or version != VERSION or length > _MOST_HEADER:
        raise ValueError
    stream.seek(_HEADER_AT)
    text = stream.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise ValueError
    header: dict[str, Any] = json.loads(text)
    at, size = header["data_at"], header["length"]
    if size != os.fstat(stream.fileno()).st_size or at % HUGE_PAGE or not 0 < at <= size:
        raise ValueError
    return header


def _entries(stream: BufferedReader, header: Mapping[str, Any], memory: Memory | None) -> NDArray[np.uint8]:
    """The bytes of all entries: mapped, or read into `memory`."""
    if memory is None:
        mapped = mmap.mmap(stream.fileno(), header["length"], access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, np.uint8)[header["data_at"] :]
    data = memory.take(header["length"] - header["data_at"])

    def read(start: int) -> bool:
        piece = data[start : start + _AT_ONCE].data
        return os.preadv(stream.fileno(), [piece], header["data_at"] + start) == len(piece)

    with ThreadPoolExecutor(_READERS) as readers:
        if not all(readers.map(read, range(0, len(data), _AT_ONCE))):
            raise ValueError
    return data


def _read(header: Mapping[str, Any], data: NDArray[np.uint8], check_content: bool) -> PackedWeights:
    from corral.kernels.packed import PackedMatrix  # which needs torch: to list and to clear, nobody does

    matrices, tensors = {}, {}
    pieces: list[tuple[NDArray[np.uint8], int]] = []
    for name, entry in header["matrices"].items():
        layout = _layout_from_json(entry)
        piece = _piece(data, entry, layout.num_bytes)
        matrices[name] = PackedMatrix(layout, piece)
        pieces.append((piece, entry["crc32"]))
    for name, entry in header["tensors"].items():
        if entry["dtype"] not in _TENSOR_TYPES:
            raise ValueError
        values = np.dtype(entry["dtype"])
        piece = _piece(data, entry, math.prod(entry["shape"]) * values.itemsize)
        tensors[name] = piece.view(values).reshape(entry["shape"])
        pieces.append((piece, entry["crc32"]))
    if check_content:
        with ThreadPoolExecutor(_READERS) as readers:
            if not all(readers.map(lambda pair: zlib.crc32(pair[0].data) == pair[1], pieces)):
                raise ValueError
    return PackedWeights(matrices, tensors)


def _piece(data: NDArray[np.uint8], entry: Mapping[str, Any], size: int) -> NDArray[np.uint8]:
    at = entry["at"]
    if at % ALIGNMENT or not 0 <= at <= at + size <= len(data):
        raise ValueError
    return data[at : at + size]


def _layout_to_json(layout: Layout) -> dict[str, Any]:
    return {**asdict(layout), "levels": layout.levels.hex()}


def _layout_from_json(fields: Mapping[str, Any]) -> Layout:
    numbers = {name: fields[name] for name in ("rows", "columns", "group", "zero")}
    if not all(type(value) is int for value in numbers.values()):
        raise ValueError
    layout = Layout(
        **numbers,
        codes=Codes(fields["codes"]),
        scales=Scales(fields["scales"]),
        has_offsets=bool(fields["has_offsets"]),
        levels=bytes.fromhex(fields["levels"]),
    )
    if not layout.is_sound():
        raise ValueError
    return layout


def _origin(file: Path) -> tuple[tuple[str, ...], Choices]:
    """The sources and the choices of a file; nothing of a damaged one."""
    try:
        with file.open("rb") as stream:
            key = _header(stream)["key"]
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


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
