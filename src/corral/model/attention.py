"""How queries meet keys: the part of the network that its caller chooses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Attend(Protocol):
    """Attention of one layer over a flat row of T tokens.

    Takes rotated queries [T, heads, head_dim] and keys, and values [T, kv_heads, head_dim]; gives [T, heads,
    head_dim]. Which tokens see which is the implementation's business: documents side by side in training,
    one cached sequence, or pages of many sequences.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class PackedCausal:
    """Documents side by side in one row, each causal within itself.

    `bounds` are the starts of the documents and the end of the last: [0, 5, 9] is two documents of 5 and 4
    tokens.
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        assert len(bounds) >= 2, "bounds need a start and an end"
        assert bounds[0] == 0, "bounds start at 0"
        assert all(start < end for start, end in pairwise(bounds)), "bounds rise"
        self.bounds = tuple(bounds)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(self.bounds) == 2:
            return causal_attention(q, k, v)  # one document: nothing to join
        documents = [slice(start, end) for start, end in pairwise(self.bounds)]
        return torch.cat([causal_attention(q[d], k[d], v[d]) for d in documents])


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last T of S tokens: q [T, heads, head_dim], k and v [S, kv_heads, head_dim].

    Query i is token S - T + i and sees the keys up to its own.
    """
    new, total = q.shape[0], k.shape[0]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, tokens, head_dim]
    mask = None
    if 1 < new < total:
        mask = q.new_ones(new, total).bool().tril(diagonal=total - new)
    output = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=new == total and new > 1, enable_gqa=q.shape[1] != k.shape[1]
    )
    return output[0].transpose(0, 1)
