"""How much memory a decode step reads, and how fast this machine can read memory at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from corral.engine.networks import Network
from corral.kernels.packed_llama import TABLE, PackedLlama
from corral.model.config import LlamaConfig
from corral.plan.formats import kv_bytes_per_token, kv_format, weight_bytes, weight_format

_SMALLEST, _LARGEST = 256 * 2**20, 2**30
_ROUNDS = 5
_CACHES = "/sys/devices/system/cpu/cpu0/cache"


def weights_read(network: Network) -> int:
    """Bytes of weights that a decode step reads: all but the embedding, of which it looks up single rows.

    An embedding that is also the head is read as the head.
    """
    config = network.config
    if isinstance(network, PackedLlama):
        table = network.matrices.get(TABLE)
        vectors = sum(vector.nbytes for vector in network.vectors.values())
        return network.num_bytes + vectors - (0 if table is None else table.num_bytes)
    form = weight_format(str(network.dtype).removeprefix("torch."))
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size * form.width
    return weight_bytes(config, form).total - looked_up


def kv_read(config: LlamaConfig, kv_dtype: str, prompt_tokens: int, new_tokens: int) -> float:
    """Bytes of cached keys and values that a decode step of one sequence reads, on average over its steps."""
    return kv_bytes_per_token(config, kv_format(kv_dtype)) * (prompt_tokens + new_tokens / 2)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which all threads together read a buffer that no cache holds: the best of several.

    What torch's reductions reach. A machine may do somewhat better with code made for nothing else, and worse
    while others use it; where a cache is larger than a quarter of the buffer, some of the reads come from it.
    """
    buffer = torch.ones(_buffer_bytes(device) // 4, device=device)
    reads: tuple[Callable[[], Tensor], ...] = (lambda: buffer.sum(), lambda: torch.dot(buffer, buffer))
    best = min(_seconds(read, device) for _ in range(_ROUNDS) for read in reads)
    return buffer.nbytes / best


def _seconds(read: Callable[[], Tensor], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    read()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _buffer_bytes(device: torch.device) -> int:
    """Four times the largest cache, within bounds; less where little memory is free."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = min(max(4 * _largest_cache(), _SMALLEST), _LARGEST)
    return max(min(wanted, free // 4), 2**20)


def _largest_cache() -> int:
    """Bytes of the first core's largest cache, as Linux tells it; 0 where it does not."""
    sizes = [path.read_text().strip() for path in Path(_CACHES).glob("index*/size")]
    return max((int(size[:-1]) * 2**10 for size in sizes if size.endswith("K")), default=0)
