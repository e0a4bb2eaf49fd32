"""What the native kernels cost in perplexity, on real weights and real text."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor

from tests.kernels.perplexity import negative_log_likelihoods

TOKENS = 4 * 1024  # `benchmarks/native_accuracy.py` takes fifteen times as many


@cache
def reference() -> Tensor:
    """The stored 4-bit weights in float32, and everything else in float32 too, on PyTorch."""
    return negative_log_likelihoods(TOKENS, dtype="float32", kernels="torch")


@pytest.mark.parametrize(("exact", "most"), [(False, 0.01), (True, 0.001)], ids=["8-bit", "exact"])
def test_the_perplexity_of_4_bit_weights(exact: bool, most: float) -> None:
    got = negative_log_likelihoods(TOKENS, exact_activations=exact, kernels="native")
    assert got.shape == reference().shape
    assert abs((got - reference()).mean().exp().item() - 1) < most
