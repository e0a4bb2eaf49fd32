"""Where the parts of a packed matrix lie: native/src/matrix.h in numbers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from corral.kernels import structures

LANES = 16  # rows of a block


class Codes(IntEnum):
    """How a weight is kept."""

    F32 = 0
    BF16 = 1
    U8 = 2
    U4 = 3
    LUT4 = 4


class Scales(IntEnum):
    """How the scales and offsets of quantized weights are kept."""

    NONE = 0
    F16 = 1
    F32 = 2


_BITS = {Codes.F32: 32, Codes.BF16: 16, Codes.U8: 8, Codes.U4: 4, Codes.LUT4: 4}
_SCALE_BYTES = {Scales.NONE: 0, Scales.F16: 2, Scales.F32: 4}


@dataclass(frozen=True)
class Layout:
    """The shape and the kind of a packed matrix [rows, columns].

    `group` are the columns that share a scale, in the packed matrix: 16, a multiple of 32, or
    `padded_columns`. A weight is scale * (code - zero) + offset, or scale * (levels[code] - zero).
    """

    rows: int
    columns: int
    codes: Codes
    scales: Scales = Scales.NONE
    has_offsets: bool = False
    group: int = 0
    zero: int = 0
    levels: bytes = bytes(16)

    @property
    def padded_columns(self) -> int:
        """Columns with those of zeros that fill up the last 32."""
        return -(-self.columns // 32) * 32

    @property
    def blocks(self) -> int:
        """Blocks of 16 rows."""
        return -(-self.rows // LANES)

    @property
    def groups(self) -> int:
        """Groups of a row, those of the padding included."""
        return self.padded_columns // self.group if self.group else 0

    @property
    def scales_at(self) -> int:
        """Bytes from the start of a block to its scales."""
        return 0

    @property
    def offsets_at(self) -> int:
        """Bytes from the start of a block to its offsets, if there are any."""
        return self._scale_bytes

    @property
    def codes_at(self) -> int:
        """Bytes from the start of a block to its codes."""
        return self._scale_bytes * (1 + self.has_offsets)

    @property
    def block_bytes(self) -> int:
        """Bytes from one block to the next."""
        return self.codes_at + _aligned(self.padded_columns * LANES * _BITS[self.codes] // 8)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole matrix."""
        return self.blocks * self.block_bytes

    @property
    def _scale_bytes(self) -> int:
        return _aligned(self.groups * LANES * _SCALE_BYTES[self.scales])

    @property
    def is_quantized(self) -> bool:
        """Whether weights are codes with scales."""
        return self.codes not in (Codes.F32, Codes.BF16)

    def is_sound(self) -> bool:
        """Whether the kernels can read such a matrix: what a file claims may be anything."""
        if min(self.rows, self.columns) < 1 or not 0 <= self.zero <= 255 or len(self.levels) != 16:
            return False
        if not self.is_quantized:
            return self.scales is Scales.NONE and not self.has_offsets and self.group == 0
        whole = self.group == self.padded_columns
        known = whole or self.group == 16 or (self.group > 0 and self.group % 32 == 0)
        return known and self.padded_columns % self.group == 0 and self.scales is not Scales.NONE

    def struct(self, address: int) -> structures.Matrix:
        """The matrix as the native library takes it, with its bytes at an address.

        There the places of scales and offsets count from the codes.
        """
        return structures.Matrix(
            rows=self.rows,
            columns=self.columns,
            padded_columns=self.padded_columns,
            codes=self.codes,
            scales=self.scales,
            has_offsets=self.has_offsets,
            group=self.group,
            zero=self.zero,
            levels=(ctypes.c_uint8 * 16)(*self.levels),
            data=address + self.codes_at,
            block_bytes=self.block_bytes,
            scales_at=self.scales_at - self.codes_at,
            offsets_at=self.offsets_at - self.codes_at,
        )

    @property
    def scale_type(self) -> type[np.float16 | np.float32]:
        """The type of scales and offsets."""
        return np.float16 if self.scales is Scales.F16 else np.float32


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 64) * 64
