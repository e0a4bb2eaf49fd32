"""What the native kernels cost in perplexity, on real weights and real text."""

from __future__ import annotations

import os
from functools import cache

import pytest
from torch import Tensor

from tests.kernels.perplexity import WINDOW, negative_log_likelihoods

# `benchmarks/native_accuracy.py` takes sixty. Instruction sets other than the best are far slower, and each
# of their kernels is compared with float64 by itself: one window, with the room that a smaller sample needs.
WINDOWS = 1 if "CORRAL_ISA" in os.environ else 4
ROOM = (4 / WINDOWS) ** 0.5


@cache
def reference() -> Tensor:
    """The stored 4-bit weights in float32, and everything else in float32 too, on PyTorch."""
    return negative_log_likelihoods(WINDOWS * WINDOW, dtype="float32", kernels="torch")


@pytest.mark.parametrize(("exact", "most"), [(False, 0.01), (True, 0.001)], ids=["8-bit", "exact"])
def test_the_perplexity_of_4_bit_weights(exact: bool, most: float) -> None:
    got = negative_log_likelihoods(WINDOWS * WINDOW, exact_activations=exact, kernels="native")
    assert got.shape == reference().shape
    assert abs((got - reference()).mean().exp().item() - 1) < most * ROOM
