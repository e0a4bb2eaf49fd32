"""The tensors of the KV cache.

Keys and values of a layer lie head by head, and within a head slot by slot: [2, K, num_blocks * block_size,
E], 2 for key and value. A slot is `block * block_size + offset`. So one head's tokens of one block are one
piece of memory, which a gather copies whole, and what it gathers is multiplied as it lies.

Letters in shapes: T tokens, B sequences, N blocks of each, S = N * block_size, K key-value heads, E head_dim.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from corral.errors import RequestError
from corral.model.config import LlamaConfig
from corral.plan.formats import kv_bytes_per_token, kv_format

KV_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
_LARGEST_CODE = 127


def resolve_kv_dtype(kv_dtype: str, dtype: torch.dtype) -> str:
    """The name of the cache's format: "auto" is the type that the model computes in. Raises RequestError."""
    if kv_dtype not in KV_DTYPES:
        raise RequestError(f"kv_cache_dtype is {kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}")
    return str(dtype).removeprefix("torch.") if kv_dtype == "auto" else kv_dtype


class KVStorage:
    """Cached keys and values of all layers, given back in `dtype`, whatever they are stored in.

    "int8" is symmetric for each token and head: codes of -127 to 127 beside a scale of absmax / 127, kept in
    bfloat16. The codes are made with the scale as it was rounded, so that no element is off by more than half
    a step. Measured by vLLM (pull request 39074), this scheme scores as bfloat16 does: 0.956 and 0.956.

    On a CPU the memory is taken page by page as it is first written: a large pool costs only what is used.
    All of it starts as zeros, because masked attention still multiplies what it masks: 0 * NaN is NaN.
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_blocks: int,
        block_size: int,
        kv_dtype: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_layers = config.num_hidden_layers
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.num_blocks, self.block_size = num_blocks, block_size
        self.kv_dtype = resolve_kv_dtype(kv_dtype, dtype)
        self.dtype, self.device = dtype, torch.device(device)
        stored: torch.dtype = getattr(torch, self.kv_dtype)
        rows = 2 * self.num_kv_heads * num_blocks * block_size  # of one layer: key or value, head, slot
        self._data = _zeros((self.num_layers, rows, self.head_dim), stored, self.device)
        self._scales = None
        if self.kv_dtype == "int8":
            self._scales = _zeros((self.num_layers, rows, 1), torch.bfloat16, self.device)
        page = block_size * self.head_dim
        self._rows = list(self._data)  # each [rows, E]
        self._pages = list(self._data.view(self.num_layers, -1, page))  # each [2 * K * num_blocks, page]
        self._scratch: dict[torch.dtype, Tensor] = {}

    @staticmethod
    def bytes_per_block(config: LlamaConfig, block_size: int, kv_dtype: str) -> int:
        """Bytes that one block takes over all layers, scales included; `kv_dtype` is not "auto"."""
        return block_size * kv_bytes_per_token(config, kv_format(kv_dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self._data.nbytes + (self._scales.nbytes if self._scales is not None else 0)

    @property
    def is_exact(self) -> bool:
        """Whether the cache gives back just what was written."""
        return self._data.dtype == self.dtype

    def layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Of each layer what is stored, [2 * K * slots, E], and the scales of int8, [2 * K * slots, 1]."""
        scales = [None] * self.num_layers if self._scales is None else list(self._scales)
        return list(zip(self._data, scales, strict=True))

    def slot_rows(self, slots: Tensor) -> Tensor:
        """Where tokens go, in every layer: rows [2 * K * T] for slots [T], as `write_rows` takes them."""
        return self._places(slots, self.num_blocks * self.block_size)

    def page_rows(self, tables: Tensor) -> Tensor:
        """Where blocks are, in every layer: pages [2 * B * K * N] for tables [B, N], for `gather_pages`."""
        return self._places(tables[:, None], self.num_blocks)

    def write_rows(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v [T, K, E] at the rows of their slots."""
        new = torch.stack((k.transpose(0, 1), v.transpose(0, 1))).view(-1, self.head_dim)
        if self._scales is None:
            self._rows[layer].index_copy_(0, rows, new.to(self._data.dtype))
        else:
            codes, scales = _quantize(new)
            self._rows[layer].index_copy_(0, rows, codes)
            self._scales[layer].index_copy_(0, rows, scales)

    def gather_pages(self, layer: int, pages: Tensor, sequences: int) -> Tensor:
        """Keys and values [2, B * K, S, E] of the pages of B sequences, in the type of computing.

        On a CPU the result lies in memory that the next gather uses again.
        """
        shape = (2, sequences * self.num_kv_heads, -1, self.head_dim)
        stored = self._select(self._pages[layer], pages)
        if self.is_exact:
            return stored.view(shape)
        values = self._space(self.dtype, stored.shape).copy_(stored)
        if self._scales is not None:
            scales = self._scales[layer].view(-1, self.block_size).index_select(0, pages)
            values.view(-1, self.head_dim).mul_(scales.view(-1, 1).to(self.dtype))
        return values.view(shape)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v [T, K, E] at slots [T]."""
        self.write_rows(layer, self.slot_rows(slots), k, v)

    def gather(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, K, E] of tables [B, N], in the type of computing."""
        sequences = tables.shape[0]
        both = self.gather_pages(layer, self.page_rows(tables), sequences).clone()
        k, v = both.view(2, sequences, self.num_kv_heads, -1, self.head_dim).transpose(2, 3)
        return k, v

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (source, target) as if one after the other; all sources are read before any write."""
        origin: dict[int, int] = {}
        for source, target in pairs:
            origin[target] = origin.get(source, source)
        if not origin:
            return
        targets = torch.tensor(list(origin.keys()), device=self.device)
        sources = torch.tensor(list(origin.values()), device=self.device)
        for blocks in self._by_block():
            blocks.index_copy_(2, targets, blocks.index_select(2, sources))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Fills blocks with zeros. Whoever frees blocks that may hold NaN does so before they are reused."""
        if blocks:
            index = torch.tensor(list(blocks), device=self.device)
            for data in self._by_block():
                data.index_fill_(2, index, 0)

    def _by_block(self) -> list[Tensor]:
        """All tensors as [layers, 2 * K, num_blocks, ...]."""
        shape = (self.num_layers, 2 * self.num_kv_heads, self.num_blocks, -1)
        return [tensor.view(shape) for tensor in (self._data, self._scales) if tensor is not None]

    def _places(self, index: Tensor, stride: int) -> Tensor:
        """[2, ..., K, ...] flat: places of `index` [T] or [B, 1, N] for key and value and each head."""
        heads = torch.arange(2 * self.num_kv_heads, device=index.device).view(2, -1) * stride
        if index.dim() == 1:
            return (heads[:, :, None] + index).flatten()
        return (heads[:, None, :, None] + index).flatten()

    def _select(self, pages: Tensor, index: Tensor) -> Tensor:
        """The pages [count, elements] at an index [count]."""
        if self.device.type != "cpu":
            return pages.index_select(0, index)
        space = self._space(pages.dtype, torch.Size((index.shape[0], pages.shape[1])))
        return torch.index_select(pages, 0, index, out=space)

    def _space(self, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """Memory to fill. On a CPU it is kept: fresh memory would be mapped and zeroed for each layer."""
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        kept, count = self._scratch.get(dtype), shape.numel()
        if kept is None or kept.numel() < count:
            with torch.inference_mode(False):  # it may be filled in either mode
                kept = self._scratch[dtype] = torch.empty(count, dtype=dtype)
        return kept[:count].view(shape)


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int8) and scales (bfloat16, [rows, 1]) of rows [rows, E]. NaN or infinity make a row NaN."""
    exact = x.float()
    scales = (exact.abs().amax(-1, keepdim=True) / _LARGEST_CODE).bfloat16()
    steps = scales.float().clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros has the scale 0
    codes = (exact / steps).round_().clamp_(-_LARGEST_CODE, _LARGEST_CODE)
    return codes.nan_to_num_(0.0).to(torch.int8), scales


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes its zeros; these come from the operating system, page by page, when first touched.
    # Not in huge pages, as np.zeros asks for them: the first token would touch one for each layer and head,
    # 360 MB for a model of 100 MB.
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    pages = mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, np.uint8)).view(dtype).view(shape)
