"""The GGUF container: metadata and where each tensor lies.

The layout is that of the GGUF specification (ggml's docs/gguf.md), versions 2 and 3, little-endian. The
`gguf` package has a reader too; it builds a numpy array for every string of the vocabulary, which takes
seconds.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.errors import CheckpointError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_MOST_DIMS = 4  # GGML_MAX_DIMS
_LENGTH = struct.Struct("<Q")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `shape` in the order of torch (rows first), `type` a GGML type number, `offset`
    in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class GgufFile:
    """A memory-mapped GGUF file.

    Raises:
        CheckpointError: the file is not GGUF, is of an unknown version, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        self._at = 0
        try:
            self.metadata, self.tensors = self._read()
        except (struct.error, IndexError, UnicodeDecodeError, RecursionError):
            raise CheckpointError(f"{path} is truncated or damaged; download it again") from None

    def _read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.data[:4] != _MAGIC:
            raise CheckpointError(f"{self.path} is not a GGUF file")
        self._at = 4
        version, num_tensors, num_fields = self._unpack("IQQ")
        if version not in (2, 3):
            raise CheckpointError(f"{self.path} is GGUF version {version}; Corral reads versions 2 and 3")
        metadata = {}
        for _ in range(num_fields):
            name = self._string()
            metadata[name] = self._value(self._unpack("I")[0])
        entries = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise IndexError
        start = -(-self._at // alignment) * alignment
        tensors = {t.name: GgufTensor(t.name, t.shape, t.type, t.offset + start) for t in entries}
        return metadata, tensors

    def _tensor(self) -> GgufTensor:
        name = self._string()
        (num_dims,) = self._unpack("I")
        if not 1 <= num_dims <= _MOST_DIMS:
            raise IndexError
        shape = self._unpack(f"{num_dims}Q")
        if min(shape) < 1:
            raise IndexError
        kind, offset = self._unpack("IQ")
        return GgufTensor(name, tuple(reversed(shape)), kind, offset)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._unpack("IQ")
            if inner in _SCALARS:
                return list(self._unpack(f"{length}{_SCALARS[inner]}"))
            if inner == _STRING:
                return self._strings(length)
            return [self._value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path} is damaged: unknown metadata type {kind}; download it again")
        return self._unpack(_SCALARS[kind])[0]

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """A vocabulary has a hundred thousand of them: every call that is saved counts."""
        data, at, size = self.data, self._at, len(self.data)
        strings = []
        for _ in range(count):
            start = at + 8
            at = start + _LENGTH.unpack_from(data, at)[0]
            if at > size:
                raise IndexError
            strings.append(data[start:at].decode())
        self._at = at
        return strings

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values
