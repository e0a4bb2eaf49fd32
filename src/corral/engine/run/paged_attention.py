"""Attention of many sequences, each over its own blocks of the KV cache.

Everything that is the same in all layers (rows, pages, masks) is computed once for a step. The G query heads
that share a key-value head are handled as further queries of that head, so that no key or value is ever
repeated.

Letters in shapes: R rows of the batch, B sequences, T queries of each, H attention heads, K key-value heads,
G = H / K, S cached tokens, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from corral.engine.cache.block_pool import SCRATCH_BLOCK
from corral.engine.cache.storage import KVStorage
from corral.engine.run.batch import Span
from corral.model.attention import causal_attention
from corral.model.config import LlamaConfig

_MOST_QUERIES_TOGETHER = 8  # spans of more tokens (prompts) are attended one by one
_WIDEST = 1.25  # the longest sequence of a group is at most so many times as long as its shortest
_GROUP_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}  # gathered at once; a CPU's caches hold the first
_FEW_KEYS = 2048  # heads times tokens: up to here torch's own attention is faster
_SCORE_ELEMENTS = 2**22  # spans with more scores are attended without ever writing them out
_MASK_ELEMENTS = 2**22
_MOST_ROWS_AT_ONCE, _FEWEST_ROWS_AT_ONCE = 256, 16

Rows = slice | Tensor


class Part(Protocol):
    """Spans of a step that are attended together: the rows of the batch, and how."""

    @property
    def rows(self) -> Rows: ...

    def __call__(self, storage: KVStorage, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """From q [B * T, H, E] of these rows, and k, v of the same rows, gives [B * T, H, E]."""


class PagedAttention:
    """Attention of one step, over spans that lie one after the other in the batch.

    Writes the keys and values of all rows to the cache, then attends each span's queries to the tokens of its
    own sequence up to their own.
    """

    def __init__(self, storage: KVStorage, spans: Sequence[Span]) -> None:
        self._storage = storage
        slots = torch.tensor(_slots(spans, storage.block_size), device=storage.device)
        self._slots = storage.slot_rows(slots)
        self._parts: list[Part] = _parts(storage, spans)

    @classmethod
    def decode(cls, storage: KVStorage, slots: Tensor, tables: Tensor, lengths: Tensor) -> PagedAttention:
        """One new token for each of B rows, from tensors alone, so that it can be captured and replayed.

        Takes the slots [B] of the new tokens, tables [B, N], and lengths [B] with the new token included.
        Rows that only fill up a batch have a slot and a table of zeros, which is the scratch block, and the
        length 1.
        """
        self = cls.__new__(cls)
        self._storage, self._slots = storage, storage.slot_rows(slots)
        batch, cached = tables.shape[0], tables.shape[1] * storage.block_size
        visible = torch.arange(cached, device=tables.device) < lengths[:, None, None]
        together = max(1, _most_tokens(storage) // cached)
        self._parts = []
        for first in range(0, batch, together):
            rows = slice(first, min(first + together, batch))
            self._parts.append(_Group(rows, storage.page_rows(tables[rows]), _additive(visible[rows])))
        return self

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        storage = self._storage
        storage.write_rows(layer, self._slots, k, v)
        if len(self._parts) == 1 and isinstance(self._parts[0].rows, slice):
            return self._parts[0](storage, layer, q, k, v)
        output = torch.empty_like(q)
        for part in self._parts:
            rows = part.rows
            if isinstance(rows, slice):
                output[rows] = part(storage, layer, q[rows], k[rows], v[rows])
            else:
                output.index_copy_(0, rows, part(storage, layer, q.index_select(0, rows), k, v))
        return output


def workspace_bytes(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, longest: int, *, exact: bool
) -> int:
    """Bytes that attention needs beside the cache, with sequences of up to `longest` tokens.

    Gathered keys and values of the largest group, twice where they are stored in another type than `dtype`
    (not `exact`); scores as they are computed; and a mask.
    """
    group = _GROUP_BYTES["cpu" if device.type == "cpu" else "cuda"]
    per_token = 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize
    tokens = max(longest, group // per_token)
    gathered = tokens * per_token * (1 if exact else 2)
    scores = max(tokens * config.num_attention_heads, _SCORE_ELEMENTS)
    share = config.num_attention_heads // config.num_key_value_heads
    mask = max(_FEWEST_ROWS_AT_ONCE * share * longest, _MASK_ELEMENTS)
    return gathered + scores * (4 + 3 * dtype.itemsize) + mask * (4 + dtype.itemsize)


@dataclass(frozen=True)
class _Fresh:
    """A prompt's beginning: nothing is cached before it, so that its keys and values are all there are."""

    rows: slice

    def __call__(self, storage: KVStorage, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v)


@dataclass(frozen=True)
class _Group:
    """Sequences of similar length with equally many queries. `mask` is [B, T, S], 0 or -inf."""

    rows: Rows
    pages: Tensor
    mask: Tensor

    def __call__(self, storage: KVStorage, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = storage.gather_pages(layer, self.pages, self.mask.shape[0])
        return _attend(q, keys, values, self.mask)


@dataclass(frozen=True)
class _Chunk:
    """Many tokens of one sequence, after others that are cached.

    `mask` [t * G, longest] is 0 or -inf for the last t tokens of the longest chunk; every piece of t rows or
    fewer uses its lower right corner.
    """

    rows: slice
    start: int
    pages: Tensor
    mask: Tensor

    def __call__(self, storage: KVStorage, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = storage.gather_pages(layer, self.pages, 1)  # [K, S, E]
        share = q.shape[1] // storage.num_kv_heads
        most = self.mask.shape[0] // share
        pieces = []
        for first in range(0, q.shape[0], most):
            piece = q[first : first + most]
            seen = self.start + first + piece.shape[0]
            mask = self.mask[-piece.shape[0] * share :, -seen:]
            mask = mask.clone() if mask.is_cuda else mask  # kernels there need aligned rows
            folded = _fold(piece, 1, storage.num_kv_heads)[None]  # [1, K, t * G, E]
            attended = F.scaled_dot_product_attention(
                folded, keys[None, :, :seen], values[None, :, :seen], attn_mask=mask
            )
            pieces.append(_unfold(attended[0], 1, piece.shape[0]))
        return torch.cat(pieces)


def _parts(storage: KVStorage, spans: Sequence[Span]) -> list[Part]:
    """Long spans one by one, short ones in groups of equally many queries and similar length."""
    parts: list[Part] = []
    short: dict[int, list[tuple[int, Span]]] = {}
    chunks: list[tuple[slice, Span]] = []
    row = 0
    for span in spans:
        count = len(span.tokens)
        if count == 1 or _fits_together(storage, span):
            short.setdefault(count, []).append((row, span))
        elif span.start == 0 and storage.is_exact:
            parts.append(_Fresh(slice(row, row + count)))
        else:
            chunks.append((slice(row, row + count), span))
        row += count
    for count, members in short.items():
        parts += [_group(storage, count, group) for group in _similar(storage, members)]
    return parts + _chunks(storage, chunks)


def _fits_together(storage: KVStorage, span: Span) -> bool:
    """Whether a span is short enough for a group, where scores are written out."""
    count = len(span.tokens)
    return count <= _MOST_QUERIES_TOGETHER and count * storage.num_heads * span.end <= _SCORE_ELEMENTS


def _similar(storage: KVStorage, members: list[tuple[int, Span]]) -> list[list[tuple[int, Span]]]:
    """Splits spans by length, so that padding stays small and what a group gathers fits the caches."""
    most_tokens = _most_tokens(storage)
    groups: list[list[tuple[int, Span]]] = []
    shortest = 0
    for row, span in sorted(members, key=lambda member: member[1].end):
        fits = groups and (len(groups[-1]) + 1) * span.end <= most_tokens
        if fits and span.end <= shortest * _WIDEST + storage.block_size:
            groups[-1].append((row, span))
        else:
            groups.append([(row, span)])
            shortest = span.end
    for group in groups:
        group.sort(key=lambda member: member[0])  # rows in order are a slice where they can be
    return groups


def _most_tokens(storage: KVStorage) -> int:
    """How many tokens of a layer, of all sequences of a group together, are gathered at once."""
    per_token = 2 * storage.num_kv_heads * storage.head_dim * storage.dtype.itemsize
    return _GROUP_BYTES["cpu" if storage.device.type == "cpu" else "cuda"] // per_token


def _group(storage: KVStorage, count: int, members: list[tuple[int, Span]]) -> Part:
    first_row = members[0][0]
    rows: Rows = slice(first_row, first_row + len(members) * count)
    if members[-1][0] != first_row + (len(members) - 1) * count:
        rows = torch.tensor([row + i for row, _ in members for i in range(count)], device=storage.device)
    tables = [_blocks(span, storage.block_size) for _, span in members]
    most = max(map(len, tables))
    padded = torch.tensor(
        [table + [SCRATCH_BLOCK] * (most - len(table)) for table in tables], device=storage.device
    )
    starts = torch.tensor([span.start for _, span in members], device=storage.device)
    last = starts[:, None] + torch.arange(count, device=storage.device)  # [B, T]: the last token each sees
    positions = torch.arange(most * storage.block_size, device=storage.device)
    return _Group(rows, storage.page_rows(padded), _additive(positions <= last[:, :, None]))


def _chunks(storage: KVStorage, chunks: list[tuple[slice, Span]]) -> list[Part]:
    if not chunks:
        return []
    share = storage.num_heads // storage.num_kv_heads
    longest = max(span.end for _, span in chunks)
    most = max(len(span.tokens) for _, span in chunks)
    most = min(most, _MOST_ROWS_AT_ONCE, max(_FEWEST_ROWS_AT_ONCE, _MASK_ELEMENTS // (share * longest)))
    device = storage.device
    last = torch.arange(longest - most, longest, device=device).repeat_interleave(share)
    mask = _additive(torch.arange(longest, device=device) <= last[:, None]).to(storage.dtype)
    parts: list[Part] = []
    for rows, span in chunks:
        table = torch.tensor([_blocks(span, storage.block_size)], device=device)
        parts.append(_Chunk(rows, span.start, storage.page_rows(table), mask))
    return parts


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B * T, H, E], k and v [B * K, S, E], mask [B, T, S] -> [B * T, H, E]."""
    sequences, queries, cached = mask.shape
    kv_heads = k.shape[0] // sequences
    folded = _fold(q, sequences, kv_heads)  # [B * K, T * G, E]
    if queries == 1 and k.shape[0] * cached <= _FEW_KEYS and k.device.type == "cpu":
        shape = (sequences, kv_heads, -1, q.shape[2])
        attended = F.scaled_dot_product_attention(
            folded.view(shape), k.view(shape), v.view(shape), attn_mask=mask[:, None]
        )
        return attended.view(q.shape)
    scores = _scores(folded, k)
    scores.view(sequences, kv_heads, queries, -1, cached).add_(mask[:, None, :, None])
    weights = torch.softmax(scores.mul_(q.shape[2] ** -0.5), -1).to(v.dtype)
    return _unfold(torch.bmm(weights, v), sequences, queries)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Products of q [B * K, rows, E] and k [B * K, S, E], nearly as exact as in float32: [B * K, rows, S].

    A product of 16-bit matrices is rounded to 16 bits: at a score of 64, to halves. A second product gives
    what the first lost. On a CPU both together are faster than one product in float32.
    """
    keys = k.transpose(1, 2)
    rounded = torch.bmm(q, keys)
    if q.dtype == torch.float32:
        return rounded
    lost = torch.baddbmm(rounded, q, keys, beta=-1)
    return rounded.float().add_(lost)


def _fold(q: Tensor, sequences: int, kv_heads: int) -> Tensor:
    """[B * T, H, E] -> [B * K, T * G, E]."""
    rows, heads, head_dim = q.shape
    split = q.reshape(sequences, rows // sequences, kv_heads, heads // kv_heads, head_dim)
    return split.transpose(1, 2).reshape(sequences * kv_heads, -1, head_dim)


def _unfold(x: Tensor, sequences: int, queries: int) -> Tensor:
    """[B * K, T * G, E] -> [B * T, H, E]."""
    kv_heads, share, head_dim = x.shape[0] // sequences, x.shape[1] // queries, x.shape[2]
    split = x.view(sequences, kv_heads, queries, share, head_dim)
    return split.transpose(1, 2).reshape(sequences * queries, kv_heads * share, head_dim)


def _additive(visible: Tensor) -> Tensor:
    """0 where visible, -inf elsewhere, in float32."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))


def _blocks(span: Span, block_size: int) -> list[int]:
    """The blocks that hold the span's sequence up to its end; it may have more in reserve."""
    return list(span.blocks[: -(-span.end // block_size)])


def _slots(spans: Sequence[Span], block_size: int) -> list[int]:
    """The slot of every new token, in the order of the batch."""
    slots: list[int] = []
    for span in spans:
        position = span.start
        while position < span.end:
            index, offset = divmod(position, block_size)
            count = min(block_size - offset, span.end - position)
            first = span.blocks[index] * block_size + offset
            slots.extend(range(first, first + count))
            position += count
    return slots
