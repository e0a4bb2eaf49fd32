"""Training's kernels of every instruction set that this machine runs, and how near to exact they are."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corral.kernels.library import Library, LibraryMissingError
from corral.kernels.training.kernels import TrainingKernels

TYPES = (torch.float32, torch.bfloat16)
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
"""Half a step of a type, relative."""


def _other_build() -> Path | None:
    path = os.environ.get("CORRAL_LIBRARY")
    return Path(path) if path else None


@cache
def instruction_sets() -> tuple[str, ...]:
    """What this machine runs; empty without the native library."""
    try:
        return Library(_other_build()).supported_isas
    except LibraryMissingError:
        return ()


@cache
def kernels_of(isa: str, threads: int = 2) -> TrainingKernels:
    return TrainingKernels(Library(_other_build(), isa), threads)


on_all = [
    pytest.mark.skipif(not instruction_sets(), reason="the native library is not built"),
    pytest.mark.parametrize("isa", instruction_sets()),
]
"""For test modules whose tests take `isa`."""

both_types = pytest.mark.parametrize("dtype", TYPES, ids=["float32", "bfloat16"])


def near(got: Tensor, exact: Tensor, units: float, least: float = 0.0) -> bool:
    """Whether numbers are within so many half steps of their type, at the size of the largest of them or of
    `least`: what cancels to nothing has the errors of what was cancelled."""
    assert got.shape == exact.shape
    allowed = units * UNIT[got.dtype] * max(least, float(exact.detach().abs().max()))
    return float((got.detach().double() - exact.detach().double()).abs().max()) <= allowed


def leaf(x: Tensor) -> Tensor:
    """A copy whose gradient is kept."""
    return x.detach().clone().requires_grad_()


def exact_leaf(x: Tensor) -> Tensor:
    """The same in float64."""
    return x.detach().double().requires_grad_()
