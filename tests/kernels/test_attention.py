"""The attention kernels of every instruction set against float64, and the promises that batches rest on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.attention_calls import CACHE_TYPES, Cache, Kernels, instruction_sets

pytestmark = [
    pytest.mark.skipif(not instruction_sets(), reason="the native library is not built"),
    pytest.mark.parametrize("isa", instruction_sets()),
]
kinds = pytest.mark.parametrize("kind", CACHE_TYPES)

UNIT = 2.0**-24  # half a step of float32, relative
HALF_UNIT = 2.0**-9  # of bfloat16


def random_cache(
    kind: str, kv_heads: int, head_dim: int, block_size: int, length: int
) -> tuple[Cache, Tensor]:
    """A cache and the table of a sequence in it: blocks in random order, NaN in all other slots."""
    count = -(-length // block_size)
    blocks = torch.randperm(count + 2)[:count]
    cache = Cache.zeros(kind, kv_heads, (count + 2) * block_size, head_dim, block_size)
    here = torch.zeros(cache.data.shape[2], dtype=torch.bool)
    here[slots_of(cache, blocks, length)] = True
    if cache.scales is not None:
        cache.data.random_(-127, 128)
        cache.scales.copy_(0.02 * torch.rand(cache.scales.shape)).masked_fill_(~here, math.nan)
    else:
        cache.data.copy_(torch.randn(cache.data.shape))
        cache.data.masked_fill_(~here[:, None], math.nan)
    return cache, blocks


def slots_of(cache: Cache, blocks: Tensor, length: int) -> Tensor:
    return (blocks[:, None] * cache.block_size + torch.arange(cache.block_size)).flatten()[:length]


def expected(cache: Cache, blocks: Tensor, q: Tensor, start: int, isa: str) -> tuple[Tensor, Tensor]:
    """Attention in float64 of what is stored, and how far a kernel may be from it: both [T, H, E].

    A score is a sum of head_dim products, of which each is off by a few roundings of the sum so far: by d in
    all. That changes a probability by a factor within exp(+-d), and its share of the sum by exp(+-2d). The
    exponential, the two sums over the keys and the weights of the stretches add roundings of their own. Where
    pairs of bfloat16 are multiplied, the queries and the probabilities are rounded to bfloat16 first.
    """
    length, (_, heads, head_dim) = start + q.shape[0], q.shape
    k, v = cache.values()[:, :, slots_of(cache, blocks, length)]
    k, v = (x.repeat_interleave(heads // x.shape[0], 0) for x in (k, v))
    mask = torch.arange(length) <= torch.arange(start, length)[:, None]
    queries = q.double().transpose(0, 1)
    exact = scaled_dot_product_attention(queries, k, v, attn_mask=mask)
    size = scaled_dot_product_attention(queries, k, v.abs(), attn_mask=mask)  # the sum of |p v|

    in_halves = isa == "avx512bf16" and cache.kind in ("bfloat16", "int8")
    unit = HALF_UNIT if in_halves else 0.0
    products = queries.abs() @ k.abs().transpose(1, 2) / math.sqrt(head_dim)
    most = products.masked_fill(~mask, 0.0).amax(-1, keepdim=True)
    score = most * (unit + (2 * head_dim + 8) * UNIT)
    allowed = size * (torch.expm1(2 * score) + unit + (2 * length + 32) * UNIT)
    return exact.transpose(0, 1), allowed.transpose(0, 1)


def check(kernels: Kernels, cache: Cache, blocks: Tensor, q: Tensor, start: int, part_rows: int = 32) -> None:
    out = kernels.attention(cache, blocks, q, start, part_rows)
    exact, allowed = expected(cache, blocks, q, start, kernels.isa)
    assert bool(((out - exact).abs() <= allowed + 1e-30).all())


shapes = {
    "kind": st.sampled_from(sorted(CACHE_TYPES)),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 5),
    "head_dim": st.sampled_from([16, 34, 64, 80, 128, 256]),
    "block_size": st.sampled_from([1, 4, 16, 32]),
    "start": st.one_of(st.integers(0, 140), st.integers(440, 600), st.integers(1010, 1040)),
    "rows": st.one_of(st.integers(1, 8), st.integers(1, 90)),
    "part_rows": st.sampled_from([1, 5, 32, 64]),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=60)
@given(**shapes)
@example("bfloat16", 3, 3, 64, 32, 0, 130, 32, 0)
@example("float32", 2, 4, 128, 16, 500, 30, 64, 0)
@example("int8", 1, 90, 64, 4, 63, 2, 32, 0)
def test_attention_is_that_of_float64_within_the_roundings(
    isa: str,
    kind: str,
    kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    start: int,
    rows: int,
    part_rows: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    cache, blocks = random_cache(kind, kv_heads, head_dim, block_size, start + rows)
    q = torch.randn(rows, kv_heads * group, head_dim)
    check(Kernels(isa), cache, blocks, q, start, part_rows)


@kinds
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 127, 511, 512, 513, 1023, 1024, 1025])
def test_a_decode_at_the_edges_of_tiles_and_stretches(isa: str, kind: str, length: int) -> None:
    torch.manual_seed(length)
    cache, blocks = random_cache(kind, 2, 64, 32, length)
    check(Kernels(isa), cache, blocks, torch.randn(1, 6, 64), length - 1)


@kinds
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (8, 2, 128), (3, 3, 34)])
def test_a_row_is_the_same_bits_in_any_part(
    isa: str, kind: str, heads: int, kv_heads: int, head_dim: int
) -> None:
    torch.manual_seed(0)
    kernels, start, rows = Kernels(isa), 450, 150
    cache, blocks = random_cache(kind, kv_heads, head_dim, 16, start + rows)
    q = torch.randn(rows, heads, head_dim)
    whole = kernels.attention(cache, blocks, q, start, rows)
    for part_rows in (1, 7, 32, 64):
        assert torch.equal(kernels.attention(cache, blocks, q, start, part_rows), whole)
    for row in (0, 61, 62, 63, 149):  # a step of its own
        alone = kernels.attention(cache, blocks, q[row : row + 1], start + row)
        assert torch.equal(alone[0], whole[row])


pair_shapes = {name: strategy for name, strategy in shapes.items() if name != "kind"}
pair_shapes |= {"head_dim": st.sampled_from([32, 64, 128, 160]), "block_size": st.sampled_from([16, 32, 48])}


@settings(max_examples=40)
@given(**pair_shapes)
def test_a_row_is_the_same_bits_from_pairs(
    isa: str,
    kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    start: int,
    rows: int,
    part_rows: int,
    seed: int,
) -> None:
    kernels = Kernels(isa)
    if not kernels.reads_pairs:
        return
    torch.manual_seed(seed)
    cache, blocks = random_cache("bfloat16", kv_heads, head_dim, block_size, start + rows)
    q = torch.randn(rows, kv_heads * group, head_dim)
    from_rows = kernels.attention(cache, blocks, q, start, part_rows)
    assert torch.equal(kernels.attention(cache.in_pairs(), blocks, q, start, part_rows), from_rows)


def test_what_is_stored_in_pairs_is_what_is_stored_in_rows(isa: str) -> None:
    kernels = Kernels(isa)
    if not kernels.reads_pairs:
        return
    torch.manual_seed(0)
    in_rows = Cache.zeros("bfloat16", 3, 96, 64, 32)
    in_pairs = Cache.zeros("bfloat16", 3, 96, 64, 32).in_pairs()
    k, v = torch.randn(2, 50, 3, 64).unbind()
    k[7, 1, 5], v[20, 2, 9] = math.nan, math.inf
    slots = torch.randperm(96)[:50]
    for cache in (in_rows, in_pairs):
        kernels.store(cache, slots, k, v)
    expected_bits = in_rows.in_pairs().data.view(torch.int16)
    assert torch.equal(in_pairs.data.view(torch.int16), expected_bits)


@kinds
def test_a_row_is_the_same_bits_in_any_blocks(isa: str, kind: str) -> None:
    torch.manual_seed(0)
    kernels, length = Kernels(isa), 300
    cache, blocks = random_cache(kind, 2, 64, 16, length)
    q = torch.randn(1, 4, 64)
    one = Cache.zeros(kind, 2, length, 64, 1)
    where, order = slots_of(cache, blocks, length), torch.randperm(length)
    one.data[:, :, order] = cache.data[:, :, where]
    if one.scales is not None and cache.scales is not None:
        one.scales[:, :, order] = cache.scales[:, :, where]
    a = kernels.attention(cache, blocks, q, length - 1)
    assert torch.equal(kernels.attention(one, order, q, length - 1), a)


@kinds
@pytest.mark.parametrize("position", [0, 6, 63, 64, 130])
def test_nan_in_the_cache_reaches_no_row_before_it(isa: str, kind: str, position: int) -> None:
    torch.manual_seed(0)
    kernels, rows = Kernels(isa), 140
    cache, blocks = random_cache(kind, 1, 64, 16, rows)
    q = torch.randn(rows, 3, 64)
    before = kernels.attention(cache, blocks, q, 0)
    slot = slots_of(cache, blocks, rows)[position]
    (cache.data if cache.scales is None else cache.scales)[:, :, slot] = math.nan
    after = kernels.attention(cache, blocks, q, 0)
    assert torch.equal(after[:position], before[:position])
    assert bool(after[position:].isnan().all())


@kinds
def test_nan_in_a_query_reaches_its_own_row_and_head(isa: str, kind: str) -> None:
    torch.manual_seed(0)
    kernels = Kernels(isa)
    cache, blocks = random_cache(kind, 2, 64, 16, 80)
    q = torch.randn(80, 6, 64)
    before = kernels.attention(cache, blocks, q, 0)
    q[33, 4, 5] = math.nan
    after = kernels.attention(cache, blocks, q, 0)
    assert bool(after[33, 4].isnan().all())
    after[33, 4] = before[33, 4]
    assert torch.equal(after, before)


@kinds
def test_scores_far_apart_leave_the_largest_alone(isa: str, kind: str) -> None:
    torch.manual_seed(0)
    cache, blocks = random_cache(kind, 1, 64, 16, 200)
    q = torch.randn(1, 2, 64) * 1e4
    out = Kernels(isa).attention(cache, blocks, q, 199)
    k, v = cache.values()[:, 0, slots_of(cache, blocks, 200)]
    best = (q[0].double() @ k.T).argmax(-1)
    torch.testing.assert_close(out[0].double(), v[best], rtol=1e-2 if kind == "int8" else 1e-6, atol=1e-30)


def test_a_float32_cache_is_as_exact_as_torch(isa: str) -> None:
    torch.manual_seed(0)
    cache, blocks = random_cache("float32", 3, 64, 4, 700)
    q = torch.randn(100, 9, 64)
    out = Kernels(isa).attention(cache, blocks, q, 600)
    exact, _ = expected(cache, blocks, q, 600, isa)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=2e-6)
