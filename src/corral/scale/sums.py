"""Sums of many tensors over processes, in few messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

LARGEST = 2**25
"""Numbers of one message; a tensor that has more travels alone."""


@torch.no_grad()
def sum_over(group: dist.ProcessGroup, tensors: Sequence[Tensor]) -> None:
    """Makes each tensor the sum over the processes of a group, which call this with the same shapes.

    They travel side by side, those of a type and device together, in float32 or better: a sum in bfloat16
    would depend on how many processes it is cut into.
    """
    if dist.get_world_size(group) == 1:
        return
    for bucket in buckets(tensors):
        exact = torch.promote_types(bucket[0].dtype, torch.float32)
        flat = torch.cat([tensor.reshape(-1).to(exact) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
            tensor.copy_(total.view(tensor.shape))


def buckets(tensors: Sequence[Tensor], largest: int = LARGEST) -> Iterator[list[Tensor]]:
    """Tensors of one type and device in groups of bounded size, in an order that all processes share."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in by_kind.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.numel() > largest:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.numel()
        yield bucket
