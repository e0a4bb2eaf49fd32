"""The file that packed weights are kept in.

It holds all packed matrices and small tensors of a model:

    bytes 0-7     the magic
    bytes 8-15    version of this format and of the packed layout, uint64, little-endian
    bytes 16-23   length of the header, uint64
    bytes 24-55   SHA-256 of the header
    from 64       the header: JSON (see `plan`)
    from 2 MiB    (a multiple of it, after the header) the entries, each at a multiple of 64 bytes
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from corral.checkpoints.cache import whole_file
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
_AT_ONCE = 8 << 20  # bytes that a thread reads or writes before it looks up
_READERS = 4  # threads: one alone reads less than the memory can take
_TENSOR_TYPES = ("float32", "float16", "uint16", "int64")


@dataclass(frozen=True)
class PackedWeights:
    """What a file holds. Mapped matrices share the file's memory with every process that maps it."""

    matrices: dict[str, PackedMatrix]
    tensors: dict[str, NDArray[Any]]


class StoppedError(Exception):
    """Nobody waits for the file any more."""


def plan(
    key: Mapping[str, Any], matrices: Mapping[str, PackedMatrix], tensors: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Any], list[tuple[int, NDArray[np.uint8]]]]:
    """The header, and the bytes of the entries with their places after the header.

    `key` is whatever identifies the weights, as JSON can hold it.
    """
    at = 0
    pieces = []
    header: dict[str, Any] = {"key": key, "matrices": {}, "tensors": {}}
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


def write(
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
                    raise StoppedError
                stream.write(data[start : start + _AT_ONCE].data)
        stream.truncate(header["length"])


def read_header(stream: BufferedReader) -> dict[str, Any]:
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


def read_entries(
    stream: BufferedReader, header: Mapping[str, Any], memory: Memory | None
) -> NDArray[np.uint8]:
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


def read_weights(header: Mapping[str, Any], data: NDArray[np.uint8], check_content: bool) -> PackedWeights:
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


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
