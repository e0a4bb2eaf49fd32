"""The kernels of single rows, of every instruction set, against float64 and against the torch path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import silu

from corral.engine.cache.storage import KVStorage
from corral.model.config import LlamaConfig
from tests.kernels.attention_calls import CACHE_TYPES, Cache, Kernels, instruction_sets

pytestmark = [
    pytest.mark.skipif(not instruction_sets(), reason="the native library is not built"),
    pytest.mark.parametrize("isa", instruction_sets()),
]

UNIT = 2.0**-24  # half a step of float32, relative
columns = st.one_of(st.integers(1, 70), st.sampled_from([576, 1536, 4096]))
seeds = st.integers(0, 2**31)


@given(columns, seeds, st.floats(-12, 12))
def test_rms_norm(isa: str, count: int, seed: int, exponent: float) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(count) * 10**exponent, torch.randn(count)
    out = Kernels(isa).rms_norm(x, weight, 1e-5)
    exact = x.double() / (x.double().square().mean() + 1e-5).sqrt() * weight.double()
    # the chain of a lane, the end of the sum, and half of that through the root; then six roundings
    allowed = (count / 64 + 16) * UNIT * exact.abs()
    assert bool(((out - exact).abs() <= allowed + 1e-37).all())


@given(columns, seeds, st.sampled_from([0.1, 1.0, 10.0, 100.0]))
def test_swiglu(isa: str, count: int, seed: int, size: float) -> None:
    torch.manual_seed(seed)
    gate, up = torch.randn(count) * size, torch.randn(count)
    out = Kernels(isa).swiglu(gate, up)
    exact = silu(gate.double()) * up.double()
    # exp within 2 units in the last place (4 half steps), a sum, a quotient, a product; what is subnormal may
    # be zero
    assert bool(((out - exact).abs() <= 10 * UNIT * exact.abs() + 1e-36).all())


def test_swiglu_of_numbers_that_are_not_finite(isa: str) -> None:
    gate = torch.tensor([math.nan, math.inf, -1e30, 1e30, 0.0])
    out = Kernels(isa).swiglu(gate, torch.ones(5))
    assert math.isnan(out[0])
    assert out[1:].tolist() == [math.inf, 0.0, gate[3].item(), 0.0]


@given(st.integers(1, 4), st.integers(1, 70), seeds)
def test_rotate(isa: str, heads: int, half: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, angle = torch.randn(heads, 2 * half), torch.rand(half) * 6
    cos, sin = angle.cos(), angle.sin()
    out = Kernels(isa).rotate(x, cos, sin)
    a, b = x.double().chunk(2, -1)
    exact = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    size = torch.cat(
        (a.abs() * cos.abs() + b.abs() * sin.abs(), b.abs() * cos.abs() + a.abs() * sin.abs()), -1
    )
    assert bool(((out - exact).abs() <= 3 * UNIT * size).all())


@pytest.mark.parametrize("kind", CACHE_TYPES)
@given(head_dim=st.sampled_from([2, 16, 34, 64, 128]), seed=seeds, exponent=st.floats(-44, 40))
def test_store_writes_what_the_torch_path_writes(
    isa: str, kind: str, head_dim: int, seed: int, exponent: float
) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=2 * head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_dim,
    )
    k, v = (torch.randn(5, 2, head_dim, dtype=torch.float64) * 10**exponent for _ in range(2))
    k[1, 0], v[2, 1, 0] = 0.0, 0.5
    k[3, 1, 1], v[4, 0, 0], v[3, 0, 1] = math.nan, math.inf, -math.inf
    k, v, slots = k.float(), v.float(), torch.randperm(12)[:5]
    k[0, 0], k[0, 0, 0] = torch.arange(head_dim) % 127 + 0.5, 127.0  # int8: half-way between two codes
    storage = KVStorage(config, 3, 4, kind, torch.float32)
    storage.write(0, slots, k, v)
    cache = Cache.zeros(kind, 2, 12, head_dim, 4)
    Kernels(isa).store(cache, slots, k, v)

    torch.testing.assert_close(
        cache.data, storage._data.view(cache.data.shape), rtol=0, atol=0, equal_nan=True
    )
    if cache.scales is not None:
        assert storage._scales is not None
        scales = storage._scales.view(cache.scales.shape)
        torch.testing.assert_close(cache.scales, scales, rtol=0, atol=0, equal_nan=True)
