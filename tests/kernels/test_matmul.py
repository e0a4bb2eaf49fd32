"""Matrix products of the native library: every layout and instruction set that is here, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kernels.matmul_calls import (
    Floats,
    Packed,
    Prepared,
    Weights,
    argmax,
    from_bf16,
    instruction_sets,
    matmul,
    matmul_call,
    to_bf16,
)

ISAS = instruction_sets()
KINDS = ("f32", "bf16", "u8", "u4", "lut4")
QUANTIZED = ("u8", "u4", "lut4")
EPS = 2.0**-24  # half a unit in the last place of 1: what one operation in float32 may be off, relatively
TINY = 2.0**-126  # below, dot products of bfloat16 may count a number as zero
NF4_LEVELS = np.array([0, 39, 61, 77, 92, 105, 116, 128, 138, 148, 159, 170, 184, 200, 220, 255], np.uint8)

pytestmark = pytest.mark.skipif(not ISAS, reason="the native library was not built")

shapes = st.tuples(
    st.integers(1, 300), st.integers(1, 90), st.integers(1, 520)
)  # x rows, weight rows, columns
layouts = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from((16, 32, 64, 128, 0)),
    st.sampled_from((np.float16, np.float32)),
    st.booleans(),
)


def random_weights(seed: int, rows: int, columns: int, layout: tuple[str, int, Any, bool]) -> Weights:
    """Weights of a layout with a few rows of zero and scales over many orders of magnitude."""
    kind, group, scale_type, with_offsets = layout
    rng = np.random.default_rng(seed)
    if kind in ("f32", "bf16"):
        values = (rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-12, 12, (rows, 1))).astype(
            np.float32
        )
        values[rng.random(rows) < 0.1] = 0
        return Weights(kind, values if kind == "f32" else to_bf16(values))
    top = 256 if kind == "u8" else 16
    groups = -(-columns // (group or columns))
    powers = (-4, 3) if scale_type == np.float16 else (-15, 12)
    scales = (rng.standard_normal((rows, groups)) * 10.0 ** rng.uniform(*powers, (rows, 1))).astype(
        scale_type
    )
    scales[rng.random((rows, groups)) < 0.05] = 0
    offsets = (scales * rng.standard_normal(scales.shape) * 3).astype(scale_type) if with_offsets else None
    zero = int(rng.integers(0, top)) if kind != "lut4" else 128
    levels = NF4_LEVELS if kind == "lut4" else None
    codes = rng.integers(0, top, (rows, columns)).astype(np.uint8)
    codes[rng.random(rows) < 0.1] = top - 1
    return Weights(kind, codes, scales, offsets, group, zero, levels)


def random_rows(seed: int, rows: int, columns: int) -> Floats:
    """Activations with rows of zero, single large values, and magnitudes from 1e-8 to 1e8."""
    rng = np.random.default_rng([seed, 1])
    x = rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-8, 8, (rows, 1))
    x[rng.random((rows, columns)) < 0.01] *= 300
    x[rng.random(rows) < 0.1] = 0
    return x.astype(np.float32)


def activation_group(weights: Weights) -> int:
    return 16 if weights.group == 16 else 32


def padded(values: NDArray[Any], columns: int) -> NDArray[np.float64]:
    return np.pad(values.astype(np.float64), ((0, 0), (0, columns - values.shape[1])))


def group_sums(a: NDArray[np.float64], b: NDArray[np.float64], unit: int) -> NDArray[np.float64]:
    """Dot products within each group of columns: [a rows, b rows, groups]."""
    a, b = a.reshape(len(a), -1, unit), b.reshape(len(b), -1, unit)
    sums: NDArray[np.float64] = np.einsum("mgk,ngk->mng", a, b, optimize=True)
    return sums


def expected(weights: Weights, x: Prepared, exact: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product in float64, and how far from it the kernels may be.

    Int8 activations: the integer sum of a group is exact (below 2^24). What rounds is the product of two
    scales, that times the sum, and the addition, for the scale and for the offset: n operations in a row on
    numbers that are at most the sum of the groups' magnitudes S are at most n * EPS * S off.
    Floating point: the same with one operation (two where there is no fused one) for each column.
    """
    columns = x.f32.shape[1]
    if weights.kind in ("f32", "bf16"):
        values = x.f32.astype(np.float64) if weights.kind == "f32" else from_bf16(x.bf16).astype(np.float64)
        dense = padded(weights.dense(), columns)
        bound = 2 * (columns + 4) * EPS * (abs(values) @ abs(dense).T)
        largest = 2 + abs(values).max() + abs(dense).max()
        return values @ dense.T, bound + columns * TINY * largest
    assert weights.scales is not None
    unit = activation_group(weights)
    integers = padded(weights.integers(), columns)
    scales = padded(weights.expanded(weights.scales), columns)
    values = from_bf16(x.bf16).astype(np.float64) if exact else x.values()
    dense = padded(weights.dense(), columns)
    if exact:
        sizes = (abs(values) @ abs(integers * scales).T)[..., None]
    else:
        sizes = abs(group_sums(values, integers * scales, unit))
    steps = 4.0 * (columns // unit) + 8 + (2 * unit if exact else 0)
    size = sizes.sum(-1)
    if weights.offsets is not None:
        offsets = padded(weights.expanded(weights.offsets), columns)
        within = abs(values) if exact else values
        size = size + abs(group_sums(within, abs(offsets), unit)).sum(-1)
    flushed = columns * TINY * (2 + abs(values).max()) * (2 + abs(scales).max())
    doubles = columns * np.finfo(np.float64).eps * (abs(values) @ abs(dense).T)  # the reference rounds too
    return values @ dense.T, steps * EPS * size + flushed + doubles


def bits(x: Floats) -> NDArray[np.int32]:
    return x.view(np.int32)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60)
@given(
    shape=shapes,
    layout=layouts,
    exact=st.booleans(),
    scales_first=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_float64(
    isa: str,
    shape: tuple[int, int, int],
    layout: tuple[str, int, Any, bool],
    exact: bool,
    scales_first: bool,
    seed: int,
) -> None:
    rows, outputs, columns = shape
    weights = random_weights(seed, outputs, columns, layout)
    x = Prepared(isa, random_rows(seed, rows, columns), activation_group(weights))
    out = matmul(isa, Packed(weights, scales_first=scales_first), x, exact=exact)
    right, bound = expected(weights, x, exact)
    assert (abs(out - right) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40)
@given(layout=layouts, exact=st.booleans(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_any_range_of_rows_and_blocks_gives_the_same_bits_and_touches_nothing_else(
    isa: str, layout: tuple[str, int, Any, bool], exact: bool, seed: int, data: st.DataObject
) -> None:
    rows, outputs, columns = data.draw(
        st.tuples(st.integers(1, 300), st.integers(1, 150), st.integers(1, 900))
    )
    weights = random_weights(seed, outputs, columns, layout)
    packed = Packed(weights)
    x = Prepared(isa, random_rows(seed, rows, columns), activation_group(weights))
    alone = np.concatenate(
        [
            matmul(
                isa,
                packed,
                Prepared(isa, x.f32[row : row + 1, :columns], activation_group(weights)),
                exact=exact,
            )
            for row in range(min(rows, 12))
        ]
    )
    full = matmul(isa, packed, x, exact=exact)
    np.testing.assert_array_equal(bits(full[: len(alone)]), bits(alone))

    row_range = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    block_range = sorted(data.draw(st.tuples(st.integers(0, packed.blocks), st.integers(0, packed.blocks))))
    out = np.full((rows, outputs + 5), 7, np.float32)
    matmul_call(isa, packed, x, out, exact=exact)(
        (row_range[0], row_range[1]), (block_range[0], block_range[1])
    )
    wanted = np.full_like(out, 7)
    part = np.s_[row_range[0] : row_range[1], block_range[0] * 16 : min(block_range[1] * 16, outputs)]
    wanted[part] = full[part]
    np.testing.assert_array_equal(bits(out), bits(wanted))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=20)
@given(shape=shapes, layout=layouts, add=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_the_bias_is_added_first_and_then_what_was_there(
    isa: str, shape: tuple[int, int, int], layout: tuple[str, int, Any, bool], add: bool, seed: int
) -> None:
    rows, outputs, columns = shape
    weights = random_weights(seed, outputs, columns, layout)
    packed = Packed(weights)
    x = Prepared(isa, random_rows(seed, rows, columns), activation_group(weights))
    rng = np.random.default_rng([seed, 2])
    plain = matmul(isa, packed, x)
    bias = rng.standard_normal(outputs).astype(np.float32) * np.float32(abs(plain).max())
    out = rng.standard_normal((rows, outputs)).astype(np.float32)
    wanted = plain + bias + (out if add else 0)
    matmul_call(isa, packed, x, out, bias=bias, add=add)((0, rows), (0, packed.blocks))
    np.testing.assert_array_equal(out, wanted)


@settings(max_examples=20)
@given(
    shape=shapes,
    layout=st.tuples(
        st.sampled_from(QUANTIZED),
        *(st.sampled_from(s) for s in ((16, 32, 64, 0), (np.float16,), (True, False))),
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_instruction_sets_that_fuse_agree_to_the_bit_on_codes(
    shape: tuple[int, int, int], layout: tuple[str, int, Any, bool], seed: int
) -> None:
    rows, outputs, columns = shape
    weights = random_weights(seed, outputs, columns, layout)
    packed, values = Packed(weights), random_rows(seed, rows, columns)
    results = [
        matmul(isa, packed, Prepared(isa, values, activation_group(weights)))
        for isa in ISAS
        if isa != "generic"
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(bits(results[0]), bits(other))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_row_that_is_not_finite_spoils_itself_alone(
    isa: str, bad: float, exact: bool, kind: str, rows: int
) -> None:
    weights = random_weights(3, 50, 200, (kind, 32, np.float32, True))
    if weights.scales is not None:
        weights.scales[weights.scales == 0] = 1
    elif kind == "f32":
        weights.values[weights.values == 0] = 1
    packed, values = Packed(weights), random_rows(5, rows, 200)
    good = matmul(isa, packed, Prepared(isa, values, 32), exact=exact)
    spoilt = rows // 2
    values[spoilt, 77] = bad
    out = matmul(isa, packed, Prepared(isa, values, 32), exact=exact)
    others = np.arange(rows) != spoilt
    np.testing.assert_array_equal(bits(out[others]), bits(good[others]))
    assert not np.isfinite(out[spoilt]).any() or (
        kind == "bf16" and bool((weights.values[~np.isnan(out[spoilt])] == 0).all())
    )
    if kind in QUANTIZED and not exact:
        assert np.isnan(out[spoilt]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_codes_and_activations_at_their_limits_do_not_saturate(isa: str) -> None:
    for zero in (0, 128, 255):
        for kind, top in (("u8", 255), ("u4", 15)):
            codes = np.full((16, 64), top, np.uint8)
            codes[1::2] = 0
            weights = Weights(kind, codes, np.ones((16, 2), np.float32), None, 32, zero)
            for rows in (1, 9):
                signs = np.where(np.arange(64) % 3 == 0, -1, 1)
                values = np.concatenate(
                    [np.full((rows, 64), 127.0), np.full((rows, 64), -127.0), 127.0 * signs[None]]
                )
                x = Prepared(isa, values.astype(np.float32), 32)
                np.testing.assert_array_equal(matmul(isa, Packed(weights), x), values @ weights.dense().T)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=50)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 200),
    group=st.sampled_from((16, 32)),
    seed=st.integers(0, 2**32 - 1),
)
def test_quantize_rounds_to_the_nearest_of_255_steps(
    isa: str, rows: int, columns: int, group: int, seed: int
) -> None:
    values = random_rows(seed, rows, columns)
    x = Prepared(isa, values, group)
    wide = padded(values, x.f32.shape[1])
    np.testing.assert_array_equal(x.f32, wide)
    np.testing.assert_array_equal(x.bf16, to_bf16(wide.astype(np.float32)))
    groups = wide.reshape(rows, -1, group)
    np.testing.assert_array_equal(x.scales, (abs(groups).max(-1).astype(np.float32) / np.float32(127)))
    codes = x.codes.reshape(groups.shape).astype(np.int64)
    np.testing.assert_array_equal(x.sums, codes.sum(-1))
    assert abs(codes).max() <= 127
    # Half a step, and what two divisions and a product in float32 may add at 127 steps.
    assert (
        abs(groups - codes * x.scales[..., None].astype(np.float64))
        <= x.scales[..., None] * (0.5 + 127 * 4 * EPS)
    ).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_quantize_tells_of_what_is_not_finite_by_the_scale(isa: str, bad: float) -> None:
    values = np.ones((1, 96), np.float32)
    values[0, 40] = bad
    x = Prepared(isa, values, 32)
    np.testing.assert_array_equal(np.isnan(x.scales), [[False, True, False]])
    np.testing.assert_array_equal(x.codes[0, 32:64], 0)
    np.testing.assert_array_equal(x.codes[0, 64:], 127)
    np.testing.assert_array_equal(np.isnan(from_bf16(x.bf16)), np.isnan(x.f32))
    np.testing.assert_array_equal(np.isinf(from_bf16(x.bf16)), np.isinf(x.f32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-35, 3e38])
def test_quantize_takes_any_magnitude(isa: str, size: float) -> None:
    x = Prepared(isa, np.linspace(-size, size, 64)[None].astype(np.float32), 32)
    assert np.isfinite(x.scales).all()
    assert (abs(x.values() - x.f32) <= np.maximum(abs(x.f32).max() / 127, 1e-36)).all()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.5, -np.inf, np.inf, np.nan, -3.0, 2.0]), min_size=1, max_size=70)
)
def test_argmax_finds_the_first_of_the_largest(isa: str, numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    value, index = argmax(isa, x)
    assert index == np.argmax(x)
    np.testing.assert_equal(value, float(x[index]))
