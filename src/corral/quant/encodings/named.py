"""The named tensors of one quantized module, checked as they are taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_E8M0 = torch.float8_e8m0fnu


class EncodingError(ValueError):
    """A tensor of a quantized module that is missing, or is not as its format says.

    Attributes:
        tensor: its name within the module, such as "qweight".
        problem: what is the matter, as the rest of a sentence.
    """

    def __init__(self, tensor: str, problem: str) -> None:
        super().__init__(f"{tensor} {problem}")
        self.tensor, self.problem = tensor, problem


def take(
    tensors: Mapping[str, Tensor],
    name: str,
    dtypes: Collection[torch.dtype],
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """A tensor of one of some types and, if it is given, of a shape.

    Raises:
        EncodingError: it is missing, or of another type or shape.
    """
    if name not in tensors:
        raise EncodingError(name, "is missing")
    tensor = tensors[name]
    if tensor.dtype not in dtypes:
        wanted = " or ".join(_plain(dtype) for dtype in dtypes)
        raise EncodingError(name, f"is {_plain(tensor.dtype)} and must be {wanted}")
    if shape is not None and tuple(tensor.shape) != shape:
        raise EncodingError(name, f"has shape {list(tensor.shape)} and must have {list(shape)}")
    return tensor


def take_matrix(tensors: Mapping[str, Tensor], name: str, dtypes: Collection[torch.dtype]) -> Tensor:
    """A tensor of two dimensions, neither of them 0."""
    tensor = take(tensors, name, dtypes)
    if tensor.dim() != 2 or not tensor.numel():
        raise EncodingError(name, f"has shape {list(tensor.shape)} and must be a matrix")
    return tensor


def take_scales(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...] | None = None,
    dtypes: Collection[torch.dtype] = FLOATS,
) -> Tensor:
    """Scales, all of them finite; powers of two in 8 bits (e8m0) become float32.

    Raises:
        EncodingError: as `take`, or one is a NaN or an infinity.
    """
    scale = take(tensors, name, dtypes, shape)
    if scale.dtype == _E8M0:
        scale = scale.float()
    if not bool(torch.isfinite(scale).all()):
        raise EncodingError(name, "holds values that are not finite")
    return scale


def optional_scale(tensors: Mapping[str, Tensor], name: str) -> float | None:
    """A single scale, if it is there."""
    if name not in tensors:
        return None
    scale = take_scales(tensors, name)
    if scale.numel() != 1:
        raise EncodingError(name, f"has shape {list(scale.shape)} and must hold one value")
    return float(scale)


def groups_of(name: str, columns: int, group_size: int | None) -> tuple[int, int]:
    """The group size, where None stands for all columns, and the number of groups of a row.

    Raises:
        EncodingError: the group size does not divide the columns of the tensor `name`.
    """
    size = columns if group_size is None else group_size
    if columns % size:
        raise EncodingError(name, f"has {columns} columns, which a group size of {size} does not divide")
    return size, columns // size


def constant(zeros: Tensor) -> int | Tensor:
    """Zero points as one number, if they are all the same."""
    first = int(zeros.flatten()[0])
    return first if bool((zeros == first).all()) else zeros


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
