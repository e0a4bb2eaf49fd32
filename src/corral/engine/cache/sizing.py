"""How many blocks the KV cache gets: from the model's shape and the memory that is really free."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corral.engine.cache.free_memory import DeviceMemory, device_memory
from corral.engine.cache.storage import KVStorage, resolve_kv_dtype
from corral.engine.config import SchedulerConfig
from corral.engine.options import EngineOptions
from corral.engine.run.paged_attention import workspace_bytes
from corral.errors import RequestError
from corral.kernels.packed_llama import PackedLlama
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.plan.devices import GIB
from corral.plan.inference import step_bytes

_SCRATCH_BLOCKS = 1
_CPU_SHARE = 0.5  # of the memory that is free beside weights and activations: others live there too


@dataclass(frozen=True)
class CacheFit:
    """The cache that fits.

    Attributes:
        num_blocks: blocks to allocate, the scratch block included.
        max_model_len: the longest sequence, prompt and output together.
        kv_dtype: the format, never "auto".
        num_bytes: what the blocks take, a draft model's included.
        notes: sentences that tell the user what was fitted.
    """

    num_blocks: int
    max_model_len: int
    kv_dtype: str
    num_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheNeeds:
    """What a cache is sized for.

    Attributes:
        config: the model's shape.
        dtype: the type that it computes in.
        device: where it runs.
        options: what the user asked for.
        scheduler: the bounds of a step.
        draft: the shape of a draft model, whose cache has as many blocks.
    """

    config: LlamaConfig
    dtype: torch.dtype
    device: torch.device
    options: EngineOptions
    scheduler: SchedulerConfig
    draft: LlamaConfig | None = None

    @property
    def max_model_len(self) -> int:
        """The longest sequence if memory were no matter."""
        return self.options.max_model_len or self.config.max_position_embeddings

    @property
    def kv_dtype(self) -> str:
        """The cache's format, never "auto"."""
        return resolve_kv_dtype(self.options.kv_cache_dtype, self.dtype)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of a block over all layers, and of the draft model's block beside it."""
        configs = [config for config in (self.config, self.draft) if config is not None]
        return sum(KVStorage.bytes_per_block(c, self.options.block_size, self.kv_dtype) for c in configs)

    @property
    def blocks_per_sequence(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_model_len // self.options.block_size)


def fit_cache(
    model: Llama | PackedLlama,
    options: EngineOptions,
    scheduler: SchedulerConfig,
    draft: LlamaConfig | None = None,
) -> CacheFit:
    """The largest cache that fits beside the weights, which must be on the device already.

    Raises:
        RequestError: not even one block fits, or not the `max_model_len` that was asked for.
        PlanError: the operating system does not say how much memory there is.
    """
    needs = CacheNeeds(model.config, model.dtype, model.device, options, scheduler, draft)
    return fit_into(needs, device_memory(model.device))


def fit_into(needs: CacheNeeds, memory: DeviceMemory) -> CacheFit:
    """The largest cache that fits into this memory; none larger than all sequences at full length fill.

    On CUDA, weights, activations and cache together fill at most `gpu_memory_utilization` of the device, as
    in vLLM. On a CPU the cache takes at most half of what is free beside the activations. `kv_cache_memory`
    is taken instead of either where it is given.
    """
    budget = _budget(needs, memory)
    filled = needs.scheduler.max_num_seqs * needs.blocks_per_sequence
    num_blocks = min(budget // needs.bytes_per_block, filled + _SCRATCH_BLOCKS)
    if num_blocks <= _SCRATCH_BLOCKS:
        raise RequestError(_too_small(needs, memory, budget))
    num_bytes = num_blocks * needs.bytes_per_block
    if num_bytes > memory.free:
        raise RequestError(f"kv_cache_memory is {_size(budget)}, but only {_size(memory.free)} are free")
    longest = (num_blocks - _SCRATCH_BLOCKS) * needs.options.block_size
    if longest >= needs.max_model_len:
        return CacheFit(num_blocks, needs.max_model_len, needs.kv_dtype, num_bytes)
    if needs.options.max_model_len is not None:
        raise RequestError(_too_long(needs, longest, num_bytes))
    return CacheFit(num_blocks, longest, needs.kv_dtype, num_bytes, (_fitted(needs, longest, num_bytes),))


def _budget(needs: CacheNeeds, memory: DeviceMemory) -> int:
    """Bytes that the cache may take; perhaps none, or less than none."""
    if needs.options.kv_cache_memory is not None:
        return needs.options.kv_cache_memory
    if needs.device.type != "cuda":
        return int((memory.free - _step(needs, memory.free)) * _CPU_SHARE)
    ours = int(memory.total * needs.options.gpu_memory_utilization)
    left = ours - (memory.total - memory.free)
    return left - _step(needs, left)


def _step(needs: CacheNeeds, available: int) -> int:
    """Bytes of the largest step beside the cache, where at most `available` bytes are left for both."""
    rows = needs.scheduler.max_num_seqs
    tokens = max(needs.scheduler.max_num_batched_tokens, rows)
    most = max(1, available // needs.bytes_per_block) * needs.options.block_size
    exact = needs.kv_dtype == resolve_kv_dtype("auto", needs.dtype)
    attention = workspace_bytes(
        needs.config, needs.dtype, needs.device, min(needs.max_model_len, most), exact=exact
    )
    return step_bytes(needs.config, tokens, rows, needs.dtype.itemsize) + attention


def _too_small(needs: CacheNeeds, memory: DeviceMemory, budget: int) -> str:
    blocks, size = _SCRATCH_BLOCKS + 1, needs.options.block_size
    smallest = (
        f"the smallest, {blocks} blocks of {size} tokens, takes {blocks * needs.bytes_per_block:,} bytes"
    )
    if needs.options.kv_cache_memory is not None:
        return f"kv_cache_memory is {_size(budget)}, but {smallest}; give the cache at least that"
    scheduler, on_gpu = needs.scheduler, needs.device.type == "cuda"
    return (
        f"{_size(memory.free)} of memory are free, which leaves {_size(max(0, budget))} for the KV cache, "
        f"but {smallest}; free memory, {'raise gpu_memory_utilization, ' if on_gpu else ''}lower "
        f"max_num_batched_tokens ({scheduler.max_num_batched_tokens}) or max_num_seqs "
        f"({scheduler.max_num_seqs}), or set kv_cache_memory"
    )


def _too_long(needs: CacheNeeds, longest: int, num_bytes: int) -> str:
    if needs.options.kv_cache_memory is not None:
        remedy = "raise kv_cache_memory"
    else:
        remedy = "free memory" + (" or raise gpu_memory_utilization" if needs.device.type == "cuda" else "")
    return (
        f"max_model_len is {needs.max_model_len}, which takes {_size(_whole(needs))} of KV cache in "
        f"{needs.kv_dtype}, but {_size(num_bytes)} fit, which is {longest} tokens; set max_model_len to at "
        f"most {longest}, or {remedy}"
    )


def _fitted(needs: CacheNeeds, longest: int, num_bytes: int) -> str:
    return (
        f"The context is fitted to {longest:,} of the model's {needs.max_model_len:,} tokens: all takes "
        f"{_size(_whole(needs))} of KV cache in {needs.kv_dtype}, and {_size(num_bytes)} fit."
    )


def _whole(needs: CacheNeeds) -> int:
    """Bytes of the cache of one longest sequence."""
    return (needs.blocks_per_sequence + _SCRATCH_BLOCKS) * needs.bytes_per_block


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB // 10 else f"{count / 2**20:.2f} MiB"
