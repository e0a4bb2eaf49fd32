"""Quantized blocks that Corral writes, against the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from hypothesis import given
from hypothesis import strategies as st

from corral.checkpoints.gguf_blocks import read_blocks
from corral.checkpoints.gguf_encode import (
    BLOCK_TYPES,
    affine_blocks,
    encoded,
    quantized_blocks,
)
from corral.quant import Affine

QUANTIZED = st.sampled_from(BLOCK_TYPES)
# Values that meet the edges of rounding: halves of a step, ties of the largest magnitude, zeros, tiny ones.
MAGNITUDES = [0.0, 1.0, 0.5, 127.0, 63.5, 0.49999997, 8.0, 7.5, 1e-7, 3e4, 1e-30]
EDGES = st.sampled_from([*MAGNITUDES, *(-value for value in MAGNITUDES)]) | st.floats(
    -100, 100, width=32
).map(lambda value: value if abs(value) > 1e-30 else 0.0)


@given(kind=QUANTIZED, seed=st.integers(0, 2**31), rows=st.integers(1, 40), blocks=st.integers(1, 4))
def test_random_values_become_the_bytes_that_ggml_makes(
    kind: GgmlType, seed: int, rows: int, blocks: int
) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, blocks * 32), dtype=np.float32)
    raw = quantized_blocks(torch.from_numpy(values), kind)
    assert np.array_equal(raw, gguf.quants.quantize(values, kind))


@given(kind=QUANTIZED, values=st.lists(EDGES, min_size=64, max_size=64))
def test_edges_of_rounding_become_the_bytes_that_ggml_makes(kind: GgmlType, values: list[float]) -> None:
    matrix = torch.tensor(values).view(2, 32)
    assert np.array_equal(quantized_blocks(matrix, kind), gguf.quants.quantize(matrix.numpy(), kind))
    assert torch.isfinite(read_blocks(quantized_blocks(matrix, kind), kind).dequantize()).all()


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_values_whose_scale_has_no_inverse_are_zero(kind: GgmlType) -> None:
    raw = quantized_blocks(torch.linspace(-1e-39, 1e-39, 32)[None], kind)
    assert torch.equal(read_blocks(raw, kind).dequantize().abs(), torch.zeros(1, 32))


@given(st.integers(0, 2**31))
def test_bfloat16_is_rounded_as_ggml_rounds_it(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, (3, 64), dtype=np.uint32)
    values = np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), np.float32(1))
    (raw,) = encoded(torch.from_numpy(values), GgmlType.BF16)
    assert raw == gguf.quants.quantize(values, GgmlType.BF16).tobytes()


def quantized(kind: GgmlType, seed: int, columns: int = 128, group_size: int = 32) -> Affine:
    """A weight that a type holds: any codes, any scales that are float16."""
    random = np.random.default_rng(seed)
    bits = 8 if kind == GgmlType.Q8_0 else 4
    codes = random.integers(0, 1 << bits, (5, columns), dtype=np.uint8)
    scale, offset = random.standard_normal((2, 5, columns // group_size)).astype(np.float16)
    return Affine(
        bits,
        group_size,
        torch.from_numpy(codes),
        torch.from_numpy(scale),
        0 if kind == GgmlType.Q4_1 else 1 << (bits - 1),
        torch.from_numpy(offset) if kind == GgmlType.Q4_1 else None,
    )


@given(kind=QUANTIZED, seed=st.integers(0, 2**31), group_size=st.sampled_from([32, 64, 128]))
def test_codes_and_scales_that_are_given_stay_as_they_are(kind: GgmlType, seed: int, group_size: int) -> None:
    weight = quantized(kind, seed, group_size=group_size)
    raw = affine_blocks(weight, kind)
    again = read_blocks(raw, kind)
    assert isinstance(again, Affine)
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.scale, weight.scale.repeat_interleave(group_size // 32, 1))
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert np.array_equal(raw, affine_blocks(again, kind))
    assert torch.equal(torch.from_numpy(gguf.quants.dequantize(raw, kind)), weight.dequantize())


@given(kind=QUANTIZED, seed=st.integers(0, 2**31), bits=st.integers(2, 4))
def test_fewer_bits_and_zero_points_of_each_group_fit_where_their_steps_do(
    kind: GgmlType, seed: int, bits: int
) -> None:
    random = np.random.default_rng(seed)
    codes = torch.from_numpy(random.integers(0, 1 << bits, (3, 64), dtype=np.uint8))
    scale = torch.from_numpy(random.choice([0.25, 1.0, -2.0], (3, 2)).astype(np.float32))
    # Of 4 bits, Q4_0 holds only those around the middle.
    zero = (
        torch.full((3, 2), 8)
        if bits == 4 and kind == GgmlType.Q4_0
        else torch.from_numpy(random.integers(0, 1 << bits, (3, 2)))
    )
    weight = Affine(bits, 32, codes, scale, zero.to(torch.int32))
    assert torch.equal(read_blocks(affine_blocks(weight, kind), kind).dequantize(), weight.dequantize())


@given(st.integers(0, 2**31))
def test_zero_points_in_q4_1_move_a_group_by_less_than_a_hundredth_of_a_step(seed: int) -> None:
    random = np.random.default_rng(seed)
    scale = torch.from_numpy(random.uniform(0.001, 0.1, (4, 2)).astype(np.float16))
    codes = torch.from_numpy(random.integers(0, 16, (4, 64), dtype=np.uint8))
    zero = torch.from_numpy(random.integers(0, 16, (4, 2), dtype=np.uint8))
    weight = Affine(4, 32, codes, scale, zero)
    moved = (
        read_blocks(affine_blocks(weight, GgmlType.Q4_1), GgmlType.Q4_1).dequantize() - weight.dequantize()
    )
    assert bool((moved.abs() < 0.01 * scale.float().repeat_interleave(32, 1)).all())


HALF = torch.ones(2, 2, dtype=torch.float16)
CODES = torch.zeros(2, 64, dtype=torch.uint8)
MISFITS: dict[str, tuple[Affine, GgmlType, str]] = {
    "groups of 16": (Affine(4, 16, CODES, torch.ones(2, 4), 8), GgmlType.Q4_0, "groups of a multiple of 32"),
    "an order": (
        Affine(4, 32, CODES, HALF, 8, order=torch.arange(63, -1, -1)),
        GgmlType.Q4_0,
        "order of its columns",
    ),
    "a scale": (Affine(4, 32, CODES, torch.full((2, 2), 1.0001), 8), GgmlType.Q4_0, "scales in float16"),
    "a huge scale": (Affine(4, 32, CODES, torch.full((2, 2), 1e6), 8), GgmlType.Q4_1, "scales in float16"),
    "an offset": (Affine(4, 32, CODES, HALF, 8, HALF), GgmlType.Q8_0, "no place for offsets"),
    "a fine offset": (
        Affine(4, 32, CODES, HALF, 0, torch.full((2, 2), 1.0001)),
        GgmlType.Q4_1,
        "hold the offsets",
    ),
    "a huge minimum": (Affine(4, 32, CODES, HALF * 6e4, 8), GgmlType.Q4_1, "minima in float16"),
    "too many bits": (Affine(8, 32, CODES + 16, HALF, 0), GgmlType.Q4_1, "codes of 4 bits"),
    "a zero point": (Affine(4, 32, CODES, HALF, 9), GgmlType.Q4_0, "do not lie between -8 and 7"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_weight_that_a_type_does_not_hold_is_refused(name: str) -> None:
    weight, kind, said = MISFITS[name]
    with pytest.raises(ValueError, match=said):
        affine_blocks(weight, kind)
