"""Quantized layouts written and read slowly, one number at a time, from their descriptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Number = Callable[[int, int], int]


def random_codes(generator: torch.Generator, bits: int, *shape: int) -> Tensor:
    """Random codes uint8 with the smallest and the largest among them."""
    codes = torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)
    codes.view(-1)[0], codes.view(-1)[-1] = 0, (1 << bits) - 1
    return codes


def adversarial_scales(generator: torch.Generator, *shape: int) -> Tensor:
    """Random scales, some negative, with a zero and the largest and smallest of float16 among them."""
    scales = torch.randn(shape, generator=generator)
    extreme = torch.tensor([0.0, 65504.0, -65504.0, 2**-14, 2**-24])[: scales.numel()]
    scales.view(-1)[: len(extreme)] = extreme
    return scales.half()


def adversarial_weight(seed: int, rows: int, columns: int) -> Tensor:
    """A random weight with a row of zeros, a row of ones, and one huge value."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    weight[1 % rows] = 1
    weight[-1, -1] = -3e4
    return weight


def as_int32(words: Sequence[int]) -> Tensor:
    """Unsigned words as the int32 of the same bits."""
    return torch.tensor([w - (1 << 32) if w >= 1 << 31 else w for w in words], dtype=torch.int32)


def words_of_32(codes: Sequence[int], bits: int) -> list[int]:
    """The words of 32 codes, as GPTQ's packer describes them: 3 bits word by word, the others evenly."""
    if bits != 3:
        each = 32 // bits
        return [
            sum(codes[word * each + i] << (bits * i) for i in range(each))
            for word in range(len(codes) // each)
        ]
    first = sum(codes[i] << (3 * i) for i in range(10)) | (codes[10] & 3) << 30
    second = codes[10] >> 2 | sum(codes[11 + i] << (3 * i + 1) for i in range(10)) | (codes[21] & 1) << 31
    third = codes[21] >> 1 | sum(codes[22 + i] << (3 * i + 2) for i in range(10))
    return [first, second, third]


def gptq_rows(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, n] as int32 words [rows, n * bits / 32]."""
    stretches = [[row[at : at + 32] for at in range(0, len(row), 32)] for row in codes.tolist()]
    return torch.stack([as_int32([w for part in row for w in words_of_32(part, bits)]) for row in stretches])
