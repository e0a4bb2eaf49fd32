"""Keys and values that are written are found again, copied and cleared, in every format."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.cache.storage import KVStorage, resolve_kv_dtype
from corral.errors import RequestError
from corral.model.config import LlamaConfig
from corral.model.presets import PRESETS

SMALL = LlamaConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
)
FORMATS = ("auto", "float32", "bfloat16", "float16", "int8")


def entries(count: int, seed: int = 0) -> torch.Tensor:
    """Keys or values [count, K, E] of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (4 * torch.rand(count, 2, 1, generator=generator) - 2)
    return sizes * torch.randn(count, 2, 6, generator=generator)


@pytest.mark.parametrize("kv_dtype", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_is_found_in_its_slot_and_layer(kv_dtype: str, dtype: torch.dtype) -> None:
    storage = KVStorage(SMALL, 7, 4, kv_dtype, dtype)
    slots = torch.tensor([9, 4, 27, 16, 10])
    written = [(entries(5, layer).to(dtype), entries(5, 10 + layer).to(dtype)) for layer in range(3)]
    for layer, (k, v) in enumerate(written):
        storage.write(layer, slots, k, v)
    for layer, (k, v) in enumerate(written):
        found_k, found_v = storage.gather(layer, torch.tensor([[1, 2], [6, 4]]))
        assert found_k.shape == (2, 8, 2, 6)
        assert found_k.dtype == found_v.dtype == dtype
        for found, given_ in ((found_k, k), (found_v, v)):
            read = torch.stack([found[0, 5], found[0, 0], found[1, 3], found[1, 4], found[0, 6]])
            # int8: half a step, and the rounding of what is given back; else the rounding to 8 bits
            error = given_.float().abs().amax(-1, keepdim=True) * (0.008 if kv_dtype == "int8" else 2**-8)
            assert ((read.float() - given_.float()).abs() <= error).all()
            if storage.is_exact:
                assert torch.equal(read, given_)
        untouched = torch.ones(2, 8, dtype=torch.bool)
        untouched[[0, 0, 1, 1, 0], [5, 0, 3, 4, 6]] = False
        assert not found_k[untouched].any()


def test_int8_is_never_off_by_more_than_half_a_step() -> None:
    storage = KVStorage(SMALL, 65, 16, "int8", torch.float32)
    x = entries(1024)
    storage.write(1, torch.arange(16, 1040), x, -x)
    k, v = storage.gather(1, torch.arange(1, 65)[None])
    steps = (x.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
    assert ((k[0] - x).abs() <= steps * 0.502).all()
    assert torch.equal(v, -k)


def test_rows_of_zeros_stay_zeros_and_rows_that_are_not_finite_spoil_only_themselves() -> None:
    storage = KVStorage(SMALL, 3, 4, "int8", torch.float32)
    x = entries(4)
    x[0], x[1, 0, 3], x[2, 1, 0] = 0.0, float("nan"), float("inf")
    storage.write(0, torch.arange(4, 8), x, x)
    k, _ = storage.gather(0, torch.tensor([[1]]))
    assert not k[0, 0].any()
    assert k[0, 1, 0].isnan().all()
    assert k[0, 2, 1].isnan().all()
    assert k[0, [1, 2], [1, 0]].isfinite().all()
    assert k[0, 3].isfinite().all()


@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8),
    kv_dtype=st.sampled_from(["float32", "int8"]),
)
def test_copies_are_as_if_made_one_after_the_other(pairs: list[tuple[int, int]], kv_dtype: str) -> None:
    storage, expected = (KVStorage(SMALL, 6, 2, kv_dtype, torch.float32) for _ in range(2))
    for layer in range(3):
        for each in (storage, expected):
            each.write(layer, torch.arange(12), entries(12, layer), entries(12, 5 + layer))
    storage.copy_blocks(pairs)
    for pair in pairs:
        expected.copy_blocks([pair])
    everything = torch.arange(6)[None]
    for layer in range(3):
        for found, right in zip(
            storage.gather(layer, everything), expected.gather(layer, everything), strict=True
        ):
            assert torch.equal(found, right)


def test_a_copy_takes_a_block_of_all_layers_whole() -> None:
    storage = KVStorage(SMALL, 6, 2, "int8", torch.float32)
    for layer in range(3):
        storage.write(layer, torch.tensor([4, 5]), entries(2, layer), entries(2, 5 + layer))
    storage.copy_blocks([(2, 5)])
    for layer in range(3):
        for both in storage.gather(layer, torch.tensor([[2], [5], [4]])):
            assert both[0].any(-1).all()
            assert torch.equal(both[0], both[1])
            assert not both[2].any()


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_a_cleared_block_holds_no_nan_and_the_others_are_kept(kv_dtype: str) -> None:
    storage = KVStorage(SMALL, 6, 2, kv_dtype, torch.float32)
    bad = torch.full((12, 2, 6), float("nan"))
    for layer in range(3):
        storage.write(layer, torch.arange(12), bad, bad)
    storage.clear_blocks([1, 4])
    storage.clear_blocks([])
    for layer in range(3):
        for both in storage.gather(layer, torch.arange(6)[:, None]):
            assert not both[[1, 4]].any()
            assert both[[0, 2, 3, 5]].isnan().all()


@pytest.mark.parametrize("kv_dtype", FORMATS[1:])
@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.2-1b"])
def test_a_block_takes_the_bytes_that_the_plan_counts(kv_dtype: str, name: str) -> None:
    config = PRESETS[name].config
    storage = KVStorage(config, 10, 16, kv_dtype, torch.bfloat16)
    assert storage.nbytes == 10 * KVStorage.bytes_per_block(config, 16, kv_dtype)


def test_auto_is_the_type_of_computing_and_an_unknown_format_is_refused_by_name() -> None:
    assert resolve_kv_dtype("auto", torch.bfloat16) == "bfloat16"
    assert resolve_kv_dtype("int8", torch.bfloat16) == "int8"
    with pytest.raises(RequestError, match="kv_cache_dtype is 'fp8'"):
        resolve_kv_dtype("fp8", torch.bfloat16)


def test_a_large_pool_takes_memory_only_for_what_is_written() -> None:
    program = """
import resource, sys, torch
from corral.engine.cache.storage import KVStorage
from corral.model.presets import PRESETS
unit = 1 if sys.platform == "darwin" else 1024
config = PRESETS["smollm2-135m"].config
small = KVStorage(config, 2, 16, "bfloat16", torch.bfloat16)
k = torch.ones(16, 3, 64, dtype=torch.bfloat16)
small.write(0, torch.arange(16), k, k)
small.gather(0, torch.tensor([[1]]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
blocks = 2**30 // KVStorage.bytes_per_block(config, 16, "bfloat16")
storage = KVStorage(config, blocks, 16, "bfloat16", torch.bfloat16)
assert storage.nbytes > 0.99 * 2**30
storage.write(29, torch.arange(16), k, k)
assert float(storage.gather(29, torch.tensor([[0, blocks - 1]]))[0].sum()) == 16 * 3 * 64
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 2**20
