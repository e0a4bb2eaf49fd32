"""Packed matrices against the description of their layout in native/src/matrix.h, byte by byte."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.kernels import structures
from corral.kernels.layout import Codes, Scales
from corral.kernels.memory import HUGE_PAGE, Memory
from corral.kernels.packed import PackedMatrix, can_join, pack, pack_rows, quantized_head
from corral.quant import NF4, Affine, Codebook, Weight

SOURCES = Path(__file__).parents[2] / "native" / "src"


def read_weight(matrix: structures.Matrix, data: bytes, first: int, row: int, column: int) -> float:
    """One weight, read from the bytes as matrix.h says, in float64. The first codes are at `first`."""
    block = first + row // 16 * matrix.block_bytes
    lane = row % 16
    if matrix.codes == Codes.F32:
        return float(struct.unpack_from("<f", data, block + (column * 16 + lane) * 4)[0])
    if matrix.codes == Codes.BF16:
        at = block + ((column // 2 * 16 + lane) * 2 + column % 2) * 2
        return float(struct.unpack("<f", b"\0\0" + data[at : at + 2])[0])
    if matrix.codes == Codes.U8:
        code = data[block + (column // 4 * 16 + lane) * 4 + column % 4]
    else:
        pair = data[block + (column // 8 * 16 + lane) * 4 + column % 4]
        code = pair & 15 if column % 8 < 4 else pair >> 4
    if matrix.codes == Codes.LUT4:
        code = matrix.levels[code]
    form, size = ("<e", 2) if matrix.scales == Scales.F16 else ("<f", 4)
    at = (column // matrix.group * 16 + lane) * size
    scale = struct.unpack_from(form, data, block + matrix.scales_at + at)[0]
    offset = struct.unpack_from(form, data, block + matrix.offsets_at + at)[0] if matrix.has_offsets else 0.0
    return float(scale * (code - matrix.zero) + offset)


def read_all(packed: PackedMatrix) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Every weight of a packed matrix, padding included: [padded rows, padded columns]."""
    matrix, data = packed.struct, packed.data.tobytes()
    rows = -(-matrix.rows // 16) * 16
    first = matrix.data - packed.data.ctypes.data
    return np.array(
        [[read_weight(matrix, data, first, r, c) for c in range(matrix.padded_columns)] for r in range(rows)]
    )


def random_affine(seed: int, rows: int, columns: int, group_size: int, bits: int, kind: str) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns // group_size)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = torch.randn(shape, generator=generator)
    offset = torch.randn(shape, generator=generator)
    zeros = torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)
    half, wide = scale.half(), scale.float()
    return {
        "constant zero": Affine(bits, group_size, codes, half, 1 << (bits - 1)),
        "constant zeros": Affine(bits, group_size, codes, half, torch.full_like(zeros, 3)),
        "bfloat16": Affine(bits, group_size, codes, scale.bfloat16(), 0),
        "half offsets": Affine(bits, group_size, codes, half, 0, offset.half()),
        "float offsets": Affine(bits, group_size, codes, wide, 0, offset),
        "zeros": Affine(bits, group_size, codes, half, zeros),
        "zeros and offsets": Affine(bits, group_size, codes, half, zeros, offset.half()),
    }[kind]


KINDS = (
    "constant zero",
    "constant zeros",
    "bfloat16",
    "half offsets",
    "float offsets",
    "zeros",
    "zeros and offsets",
)
SHAPES = st.sampled_from(
    [(1, 32, 32), (17, 64, 16), (16, 48, 16), (5, 96, 48), (20, 40, 40), (33, 128, 64), (3, 256, 128)]
)


@given(st.integers(0, 2**31), SHAPES, st.integers(1, 8), st.sampled_from(KINDS))
def test_every_affine_weight_is_where_the_layout_says(
    seed: int, shape: tuple[int, int, int], bits: int, kind: str
) -> None:
    rows, columns, group_size = shape
    weight = random_affine(seed, rows, columns, group_size, bits, kind)
    packed = pack(weight)
    assert packed.layout.codes == (Codes.U4 if bits <= 4 else Codes.U8)
    read = read_all(packed)
    values = weight.dequantize()
    assert np.allclose(read[:rows, :columns], values.double().numpy(), rtol=1e-6, atol=1e-4)
    assert torch.allclose(packed.dequantize(), values, rtol=1e-6, atol=1e-4)
    if kind not in ("zeros", "zeros and offsets"):
        assert torch.equal(packed.dequantize(), values)
    assert not read[rows:].any()
    # A column of padding meets an activation of zero; where it has a group of its own, it is zero too.
    assert group_size == columns or not read[:, columns:].any()


def test_scales_are_as_wide_as_they_must_be() -> None:
    kinds = {kind: pack(random_affine(0, 4, 64, 32, 4, kind)).layout for kind in KINDS}
    assert {k: v.scales for k, v in kinds.items() if v.scales is Scales.F16} == {
        "constant zero": Scales.F16,
        "constant zeros": Scales.F16,
        "half offsets": Scales.F16,
    }
    assert [k for k, v in kinds.items() if not v.has_offsets] == [
        "constant zero",
        "constant zeros",
        "bfloat16",
    ]
    assert kinds["constant zeros"].zero == 3


def test_integer_zero_points_become_offsets_without_loss() -> None:
    """A float16 scale times an integer of 5 bits is exact in float32, and so is the difference of two."""
    weight = random_affine(1, 32, 128, 32, 4, "zeros")
    assert torch.equal(pack(weight).dequantize(), weight.dequantize())


@given(
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 20),
    st.integers(1, 70),
)
def test_every_float_is_where_the_layout_says(seed: int, dtype: torch.dtype, rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed = pack(weight)
    read = read_all(packed)
    assert np.array_equal(read[:rows, :columns], weight.double().numpy())
    assert not read[rows:].any()
    assert not read[:, columns:].any()
    assert torch.equal(packed.dequantize(), weight.float())


def test_float16_that_was_bfloat16_is_packed_as_bfloat16() -> None:
    weight = torch.randn(16, 64) * 0.02
    assert pack(weight.bfloat16().half()).layout.codes is Codes.BF16
    assert pack(weight.half()).layout.codes is Codes.F32


@given(st.integers(0, 2**31), st.integers(1, 20), st.sampled_from([(64, 64), (96, 32), (128, 16)]))
def test_every_codebook_weight_is_where_the_layout_says(seed: int, rows: int, shape: tuple[int, int]) -> None:
    columns, group_size = shape
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    quantized = Codebook.quantize(weight, group_size)
    packed = pack(quantized)
    read = read_all(packed)[:rows, :columns]
    assert np.allclose(packed.dequantize().double().numpy(), read, rtol=1e-6, atol=1e-30)
    scale = quantized.scale.repeat_interleave(group_size, 1).numpy()
    assert np.abs(read - quantized.dequantize().double().numpy()).max() <= scale.max() * 0.5 / 96


def test_levels_in_bytes_are_near_those_of_nf4() -> None:
    packed = pack(
        Codebook(torch.tensor(NF4), 16, torch.arange(16, dtype=torch.uint8)[None], torch.ones(1, 1))
    )
    assert (packed.dequantize() - torch.tensor(NF4)).abs().max() < 0.0042
    assert list(packed.layout.levels) == sorted(packed.layout.levels)


def test_levels_that_are_integers_are_exact() -> None:
    levels = torch.tensor([-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    codes = torch.randint(0, 16, (18, 64), dtype=torch.uint8)
    weight = Codebook(levels, 32, codes, torch.randn(18, 2).half())
    packed = pack(weight)
    assert packed.layout.scales is Scales.F16
    assert torch.equal(packed.dequantize(), weight.dequantize())


@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3))
def test_rows_packed_together_are_those_packed_alone(seed: int, counts: list[int], kind: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    floats = [torch.randn(rows, 64, generator=generator) for rows in counts]
    weights: list[Weight] = [
        (f, f.bfloat16(), Affine.quantize(f, 4, 32, symmetric=False), Codebook.quantize(f, 32))[kind]
        for f in floats
    ]
    assert can_join(weights)
    together = pack_rows(weights)
    assert together.shape == (sum(counts), 64)
    assert torch.equal(together.dequantize(), torch.cat([pack(w).dequantize() for w in weights]))


def test_large_matrices_are_packed_in_stretches_that_fit_together() -> None:
    weights = [Affine.quantize(torch.randn(rows, 1024), 8, 32) for rows in (1501, 700)]
    packed = pack_rows(weights)
    assert torch.equal(packed.dequantize(), torch.cat([w.dequantize() for w in weights]))


def test_matrices_of_different_kinds_are_not_packed_together() -> None:
    weight = torch.randn(16, 64)
    four = Affine.quantize(weight, 4, 32)
    others: list[Weight] = [
        weight,
        Affine.quantize(weight, 4, 64),
        Affine.quantize(weight, 8, 32),
        Affine.quantize(weight, 4, 32, symmetric=False),
        Affine.quantize(weight[:, :32], 4, 32),
        Codebook.quantize(weight, 32),
    ]
    for other in others:
        assert not can_join([four, other])
        with pytest.raises(ValueError, match="cannot be packed as one"):
            pack_rows([four, other])


def test_a_group_size_that_no_kernel_reads_becomes_float32() -> None:
    weight = Affine.quantize(torch.randn(4, 48), 4, 8)
    packed = pack(weight)
    assert packed.layout.codes is Codes.F32
    assert torch.equal(packed.dequantize(), weight.dequantize())


def test_scales_can_be_rounded_to_half_precision_where_they_are_in_its_range() -> None:
    weight = random_affine(0, 16, 64, 32, 4, "float offsets")
    packed = pack(weight, half_scales=True)
    assert packed.layout.scales is Scales.F16
    assert weight.offset is not None
    most = 2**-11 * (15 * weight.scale.abs() + weight.offset.abs()).repeat_interleave(32, 1)
    assert bool(((packed.dequantize() - weight.dequantize()).abs() <= most).all())
    tiny = Affine(4, 32, weight.codes, weight.scale * 1e-8, 8)
    assert pack(tiny, half_scales=True).layout.scales is Scales.F32


@pytest.mark.parametrize("columns", [64, 48])
def test_a_head_keeps_8_bits_in_small_groups(columns: int) -> None:
    weight = torch.randn(50, columns) * torch.rand(50, 1).exp()
    head = quantized_head(weight.bfloat16())
    assert isinstance(head, Affine)
    assert (head.bits, head.zero, head.scale.dtype) == (8, 128, torch.float16)
    assert head.group_size in (16, 32)
    assert (head.dequantize() - weight).norm() / weight.norm() < 0.007
    assert quantized_head(head) is head


def test_small_matrices_share_huge_pages() -> None:
    memory = Memory()
    first, second = memory.take(1000), memory.take(100)
    assert first.ctypes.data % HUGE_PAGE == 0
    assert second.ctypes.data - first.ctypes.data == 1024
    large = memory.take(100 << 20)
    assert large.ctypes.data % HUGE_PAGE == 0
    assert not large[:: 1 << 20].any()
    alone = Memory(0).take(1000)  # an adapter's matrices: thousands, and none may take a huge page
    assert alone.ctypes.data % 64 == 0
    assert not alone.any()
    packed = pack(torch.ones(16, 32), memory)
    assert packed.struct.data == second.ctypes.data + 128


def test_the_structure_has_the_fields_of_the_header(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    names = [field[0] for field in structures.Matrix._fields_]
    lines = "".join(f'std::printf("%zu ", offsetof(corral::Matrix, {name}));' for name in names)
    source = tmp_path / "offsets.cpp"
    source.write_text(
        f'#include <cstddef>\n#include <cstdio>\n#include "matrix.h"\nint main() {{ {lines}'
        ' std::printf("%zu", sizeof(corral::Matrix)); }\n'
    )
    program = tmp_path / "offsets"
    subprocess.run([compiler, "-std=c++17", f"-I{SOURCES}", source, "-o", program], check=True)
    told = [int(word) for word in subprocess.run([program], capture_output=True, check=True).stdout.split()]
    assert told[:-1] == [getattr(structures.Matrix, name).offset for name in names]
    assert told[-1] == ctypes.sizeof(structures.Matrix)
