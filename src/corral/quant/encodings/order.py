"""Activation order: columns whose groups lie apart, and what puts those of a group next to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from corral.quant.encodings.named import EncodingError


def column_order(name: str, groups: Tensor, group_size: int) -> Tensor | None:
    """The order in which columns form runs of a group each, as `Affine.order`; None if they do already.

    Args:
        name: of the tensor, for errors.
        groups: int32 [columns], the group of each column.
        group_size: columns of a group.

    Raises:
        EncodingError: a group is out of range, or has more or fewer columns than `group_size`.
    """
    count = len(groups) // group_size
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise EncodingError(name, f"names groups outside 0 to {count - 1}")
    sizes = torch.bincount(groups.long(), minlength=count)
    if not bool((sizes == group_size).all()):
        group = int((sizes != group_size).nonzero()[0])
        raise EncodingError(
            name, f"puts {int(sizes[group])} columns into group {group}; each must have {group_size}"
        )
    order = groups.argsort(stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order


def column_groups(order: Tensor | None, columns: int, group_size: int) -> Tensor:
    """The inverse of `column_order`: int32 [columns], the group of each column."""
    groups = torch.arange(columns, dtype=torch.int32) // group_size
    if order is None:
        return groups
    spread = torch.empty_like(groups)
    spread[order.cpu()] = groups
    return spread


def in_place(codes: Tensor, order: Tensor | None) -> Tensor:
    """Stored columns put back where they are in the matrix."""
    if order is None:
        return codes
    return torch.empty_like(codes).index_copy_(1, order, codes)
