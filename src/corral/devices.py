"""Where a model runs and in which type, and torch's errors about memory in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from corral.errors import RequestError
from corral.model.config import DTYPES


def pick_device(name: str) -> torch.device:
    """The device with this name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        RequestError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RequestError(f"device {name!r} is not available here; use cpu or auto") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The floating-point type with this name; "auto" is bfloat16 where the device is fast with it."""
    if name == "auto":
        fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return parse_dtype(name)


def parse_dtype(name: str) -> torch.dtype:
    """The floating-point type with this name.

    Raises:
        RequestError: it is none of float32, bfloat16 and float16.
    """
    if name not in DTYPES:
        raise RequestError(f"dtype is {name!r}; it must be {', '.join(DTYPES)} or auto")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch's is about memory. On the CPU torch has no type of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def out_of_memory(device: torch.device | str) -> RequestError:
    """The error that says so, and what to do."""
    return RequestError(
        f"not enough memory on {device}: `corral plan` shows what fits; a shorter context, a smaller dtype "
        "or a smaller model takes less"
    )


@contextmanager
def memory_in_words(device: torch.device) -> Iterator[None]:
    """Turns torch's errors about memory into one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(device) from error
        raise
