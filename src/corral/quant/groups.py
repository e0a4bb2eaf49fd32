"""What the weight families share: groups of columns with a scale each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_AT_ONCE = 1 << 18  # elements: temporaries of this size stay in the processor's cache
_AT_ONCE_ELSEWHERE = 1 << 24  # on other devices each step costs a launch; this bounds its memory
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def row_slices(rows: int, columns: int, device: torch.device | None = None) -> Iterator[slice]:
    """Stretches of rows that are small enough to be worked on in the processor's cache.

    On a `device` that is no CPU they are longer.
    """
    at_once = _AT_ONCE if device is None or device.type == "cpu" else _AT_ONCE_ELSEWHERE
    step = max(1, at_once // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def some_rows(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """Rows of a tensor; whole rows are copied, which indexing does element by element."""
    return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)


def check_codes(codes: Tensor, group_size: int) -> tuple[int, int]:
    """The shape that scales [rows, groups] must have.

    Raises:
        ValueError: the codes are no matrix of uint8, or their columns are no multiple of `group_size`.
    """
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise ValueError(f"codes must be a matrix of uint8, not {codes.dtype} {list(codes.shape)}")
    if group_size < 1 or codes.shape[1] % group_size:
        raise ValueError(f"a group size of {group_size} does not divide {codes.shape[1]} columns")
    return codes.shape[0], codes.shape[1] // group_size


def check_floats(name: str, values: Tensor, shape: tuple[int, int]) -> None:
    """Refuse scales or offsets of another shape or type with a ValueError."""
    if values.dtype not in _FLOATS:
        raise ValueError(f"{name} must be float16, bfloat16 or float32, not {values.dtype}")
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(values.shape)}")


def check_order(order: Tensor, columns: int) -> None:
    """Refuse what is no permutation of columns with a ValueError."""
    if order.dtype != torch.int64 or tuple(order.shape) != (columns,):
        raise ValueError(f"order must be int64 [{columns}], not {order.dtype} {list(order.shape)}")
    if not torch.equal(order.sort().values, torch.arange(columns, device=order.device)):
        raise ValueError(f"order must hold each of {columns} columns once")


def check_weight(weight: Tensor, group_size: int) -> tuple[int, int]:
    """The shape of a weight that can be quantized.

    Raises:
        ValueError: it is no matrix, holds a NaN or an infinity, or `group_size` does not divide its columns.
    """
    if weight.dim() != 2 or group_size < 1 or weight.shape[1] % group_size:
        raise ValueError(f"a weight of shape {list(weight.shape)} has no groups of {group_size} columns")
    if not all(torch.isfinite(weight[part]).all() for part in row_slices(*weight.shape)):
        raise ValueError("the weight holds values that are not finite")
    return weight.shape[0], weight.shape[1]


def grouped(weight: Tensor, group_size: int) -> Tensor:
    """A weight [rows, columns] as float32 [rows, groups, group_size]."""
    return weight.float().view(weight.shape[0], -1, group_size)


def narrowed(scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets as float16, if they are in its range, else float32.

    Scales far below the largest may lose precision or vanish, where they stand for next to nothing: rows of
    tokens that were never trained must not double the bytes of everyone else's scales.
    """
    half = torch.finfo(torch.float16)
    largest = _largest(scale)
    fits = half.tiny <= largest <= half.max and _largest(offset) <= half.max
    dtype = torch.float16 if fits or largest == 0.0 == _largest(offset) else torch.float32
    return scale.to(dtype), offset.to(dtype)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
