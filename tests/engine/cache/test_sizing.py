"""The cache is sized for the memory that is free, or refused in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.cache.free_memory import DeviceMemory, available_memory, device_memory
from corral.engine.cache.sizing import CacheNeeds, fit_cache, fit_into
from corral.engine.cache.storage import KVStorage
from corral.engine.options import EngineOptions
from corral.errors import RequestError
from corral.model.presets import PRESETS
from corral.plan.formats import kv_bytes_per_token, kv_format
from corral.plan.inference import step_bytes
from tests.random_models import SMALL_CHAT, random_model

GIB = 2**30
LLAMA_8B = PRESETS["llama-3.1-8b"].config
SMOLLM = PRESETS["smollm2-135m"].config


def needs(device: str = "cpu", config: str = "llama-3.1-8b", **options: object) -> CacheNeeds:
    chosen = EngineOptions.of({"block_size": 16, **options})
    where = torch.device(device)
    return CacheNeeds(PRESETS[config].config, torch.bfloat16, where, chosen, chosen.scheduler(device))


def test_on_cuda_weights_activations_and_cache_stay_within_the_share_of_the_device() -> None:
    memory = DeviceMemory(total=80 * GIB, free=64 * GIB)  # 16 GiB of weights
    fit = fit_into(needs("cuda"), memory)
    step = step_bytes(LLAMA_8B, 4096, 64, 2)
    left = 72 * GIB - 16 * GIB - step
    assert left - 3 * GIB < fit.num_bytes <= left
    assert fit.num_blocks == fit.num_bytes // KVStorage.bytes_per_block(LLAMA_8B, 16, "bfloat16")
    assert (fit.max_model_len, fit.kv_dtype, fit.notes) == (131072, "bfloat16", ())
    less = fit_into(needs("cuda", gpu_memory_utilization=0.8), memory)
    assert fit.num_bytes - less.num_bytes == pytest.approx(8 * GIB, rel=0.01)


def test_on_a_cpu_the_cache_takes_at_most_half_of_what_is_free() -> None:
    fit = fit_into(needs(max_model_len=8192), DeviceMemory(total=64 * GIB, free=20 * GIB))
    assert 9 * GIB < fit.num_bytes <= 10 * GIB


def test_no_more_blocks_are_taken_than_all_sequences_at_full_length_fill() -> None:
    asked = needs(config="smollm2-135m", max_num_seqs=4, max_model_len=1000)
    fit = fit_into(asked, DeviceMemory(total=64 * GIB, free=60 * GIB))
    assert fit.num_blocks == 4 * 63 + 1


def test_a_context_that_does_not_fit_is_fitted_and_said() -> None:
    fit = fit_into(needs("cuda"), DeviceMemory(total=24 * GIB, free=8 * GIB))
    assert fit.max_model_len % 16 == 0
    assert 16384 < fit.max_model_len == 16 * (fit.num_blocks - 1) < 131072
    (note,) = fit.notes
    assert f"{fit.max_model_len:,} of the model's 131,072 tokens" in note
    assert "16.00 GiB" in note


def test_eight_bit_keys_and_values_let_a_longer_context_fit() -> None:
    memory = DeviceMemory(total=24 * GIB, free=8 * GIB)
    sixteen, eight = (fit_into(needs("cuda", kv_cache_dtype=name), memory) for name in ("auto", "int8"))
    assert eight.kv_dtype == "int8"
    assert eight.max_model_len > 1.7 * sixteen.max_model_len
    tokens = 16 * eight.num_blocks
    assert eight.num_bytes == tokens * kv_bytes_per_token(LLAMA_8B, kv_format("int8"))


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused_with_what_would() -> None:
    memory = DeviceMemory(total=24 * GIB, free=8 * GIB)
    with pytest.raises(RequestError, match="max_model_len is 100000") as refused:
        fit_into(needs("cuda", max_model_len=100000), memory)
    most = re.search(r"set max_model_len to at most (\d+)", str(refused.value))
    assert most is not None
    assert fit_into(needs("cuda", max_model_len=int(most[1])), memory).max_model_len == int(most[1])
    with pytest.raises(RequestError, match="max_model_len"):
        fit_into(needs("cuda", max_model_len=int(most[1]) + 1), memory)
    with pytest.raises(RequestError, match="raise kv_cache_memory"):
        fit_into(needs("cuda", max_model_len=100000, kv_cache_memory=GIB), memory)


def test_memory_too_small_for_one_block_is_refused_by_the_name_of_the_option() -> None:
    block = KVStorage.bytes_per_block(LLAMA_8B, 16, "bfloat16")
    memory = DeviceMemory(total=24 * GIB, free=8 * GIB)
    with pytest.raises(RequestError, match=r"kv_cache_memory is 4.00 MiB.*2 blocks of 16 tokens"):
        fit_into(needs("cuda", kv_cache_memory=2 * block - 1), memory)
    assert fit_into(needs("cuda", kv_cache_memory=2 * block), memory).max_model_len == 16
    with pytest.raises(RequestError, match="gpu_memory_utilization"):
        fit_into(needs("cuda"), DeviceMemory(total=24 * GIB, free=2 * GIB))
    with pytest.raises(RequestError, match=r"0.00 MiB for the KV cache.*max_num_batched_tokens") as refused:
        fit_into(needs("cpu"), DeviceMemory(total=24 * GIB, free=100 * 2**20))
    assert "gpu_memory_utilization" not in str(refused.value)


def test_a_cache_larger_than_the_free_memory_is_refused() -> None:
    with pytest.raises(RequestError, match=r"kv_cache_memory is 9.00 GiB, but only 8.00 GiB are free"):
        fit_into(needs("cuda", kv_cache_memory=9 * GIB), DeviceMemory(total=24 * GIB, free=8 * GIB))


def test_a_draft_models_cache_is_counted_too() -> None:
    memory = DeviceMemory(total=24 * GIB, free=8 * GIB)
    alone = needs("cuda")
    both = replace(alone, draft=SMOLLM)
    fit = fit_into(both, memory)
    blocks = (KVStorage.bytes_per_block(config, 16, "bfloat16") for config in (LLAMA_8B, SMOLLM))
    assert fit.num_bytes == fit.num_blocks * sum(blocks)
    assert fit.num_blocks < fit_into(alone, memory).num_blocks


@given(free=st.integers(1, 40 * GIB), block_size=st.integers(1, 64), length=st.integers(1, 131072))
def test_what_fits_holds_the_context_and_leaves_room(free: int, block_size: int, length: int) -> None:
    asked = needs("cuda", block_size=block_size, max_model_len=length)
    try:
        fit = fit_into(asked, DeviceMemory(total=40 * GIB, free=free))
    except RequestError:
        fit = None
    if fit is not None:
        assert block_size * (fit.num_blocks - 1) >= fit.max_model_len == length
        assert fit.num_bytes + step_bytes(LLAMA_8B, 4096, 64, 2) <= free - 4 * GIB
    else:
        assert free < 24 * GIB


def test_a_small_model_on_this_machine_gets_its_whole_context() -> None:
    model = random_model(SMALL_CHAT)
    options = EngineOptions(max_num_seqs=8)
    fit = fit_cache(model, options, options.scheduler("cpu"))
    assert (fit.num_blocks, fit.max_model_len, fit.kv_dtype) == (8 * 2 + 1, 64, "float32")
    memory = device_memory(torch.device("cpu"))
    assert 0 < memory.free <= memory.total


def test_free_memory_is_what_the_machine_and_every_control_group_leave(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    total = 16 * GIB
    assert available_memory(total, tmp_path) == 8 * GIB  # nothing says
    write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 12 kB\nMemAvailable:   10485760 kB\n")
    assert available_memory(total, tmp_path) == 10 * GIB
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", f"{7 * GIB}\n")
    write("sys/fs/cgroup/memory.stat", f"anon {4 * GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\n")
    assert available_memory(total, tmp_path) == 10 * GIB
    write("sys/fs/cgroup/memory.max", f"{8 * GIB}\n")
    assert available_memory(total, tmp_path) == 3 * GIB
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{6 * GIB}\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{5 * GIB}\n")
    assert available_memory(total, tmp_path) == GIB
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{7 * GIB}\n")
    assert available_memory(total, tmp_path) == 0
