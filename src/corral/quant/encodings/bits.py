"""Small integers in 32-bit words, densely, the first in the lowest bits.

Code i of a row has the bits  i * bits .. i * bits + bits - 1  of the row's words taken as one long number.
Where 32 is a multiple of `bits` no code crosses from one word to the next; with 3 bits 32 codes lie in 3
words.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.quant.groups import row_slices


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of each row of int32 words [rows, words]: uint8 [rows, count]."""
    rows = words.shape[0]
    packed = words.cpu().contiguous().numpy().view(np.uint8)  # the bytes of a word from the lowest
    codes = np.empty((rows, count), np.uint8)
    for part in row_slices(rows, count):
        codes[part] = _spread(packed[part], bits)[:, :count]
    return torch.from_numpy(codes)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """The words int32 [rows, ceil(count * bits / 32)] of uint8 codes [rows, count]; what is over is 0."""
    rows, count = codes.shape
    num_words = -(-count * bits // 32)
    raw = codes.cpu().contiguous().numpy()
    words = np.zeros((rows, num_words * 4), np.uint8)
    for part in row_slices(rows, count):
        dense = _dense(raw[part], bits)
        words[part, : dense.shape[1]] = dense
    return torch.from_numpy(words.view(np.int32))


def _dense(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The bytes of rows of codes [rows, count], side by side; what is over in the last byte is 0."""
    each, over = divmod(8, bits)
    if over or codes.shape[1] % each:
        ones = np.unpackbits(codes[..., None], axis=2, bitorder="little")[..., :bits]
        return np.packbits(ones.reshape(len(ones), -1), axis=1, bitorder="little")
    packed = codes[:, ::each].copy()
    for i in range(1, each):
        packed |= codes[:, i::each] << (bits * i)
    return packed


def _spread(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """All codes of rows of bytes [rows, bytes]."""
    rows = len(packed)
    if bits == 8:
        return packed
    if 8 % bits == 0:
        each = 8 // bits
        spread = np.empty((rows, packed.shape[1] * each), np.uint8)
        for i in range(each):
            spread[:, i::each] = packed >> (bits * i) & ((1 << bits) - 1)
        return spread
    ones = np.unpackbits(packed, axis=1, bitorder="little")
    whole = ones.shape[1] // bits
    by_code = ones[:, : whole * bits].reshape(rows, whole, bits)
    return np.packbits(by_code, axis=2, bitorder="little")[..., 0]
