from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corral.engine.sampling import scan_numpy, scan_torch
from corral.engine.sampling.scan import MASS_ERROR, Scan
from corral.engine.sampling.scan_native import NativeScan
from corral.kernels.library import Pool, load

SCANS: list[Scan] = [scan_numpy, scan_torch]  # torch's serves any device, the CPU too
if (library := load()) is not None:
    SCANS.append(NativeScan(Pool(library, 2)))


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    shape = draw(st.integers(1, 5)), draw(st.sampled_from([1, 50, 1024, 1500, 4096, 9001]))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6)))) * 4
    step = draw(st.sampled_from([0.0, 1.0, 100.0]))  # equal logits: some, or all
    values = (values / step).round() * step if step else values
    ruled_out = draw(st.sampled_from([0.0, 0.5, 0.999]))
    random = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return values.masked_fill(random < ruled_out, -torch.inf).to(
        draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )


@pytest.mark.parametrize("scan", SCANS)
@given(logits(), st.integers(1, 512))
def test_a_window_holds_the_best_tokens_in_order(scan: Scan, logits: Tensor, rank: int) -> None:
    found = scan.windows(logits, np.full(len(logits), rank))
    for row, window in zip(logits.float(), found, strict=True):
        ordered, ids = row.sort(descending=True, stable=True)
        finite = int((row > -torch.inf).sum())
        size = len(window.ids)
        assert window.ids.tolist() == ids[:size].tolist()
        assert window.scores.tolist() == ordered[:size].tolist()
        assert size >= min(rank, finite)
        assert size == finite or ordered[size] < ordered[size - 1]  # equal ones are not cut apart
        assert not window.complete or size == finite
        assert window.complete or size < len(row)


@pytest.mark.parametrize("scan", SCANS)
@given(logits())
def test_the_best_token_is_the_first_of_the_greatest(scan: Scan, logits: Tensor) -> None:
    values, ids = scan.best_tokens(logits)
    assert values.tolist() == logits.float().amax(1).tolist()
    assert ids.tolist() == [row.tolist().index(max(row.tolist())) for row in logits]


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_the_greatest(scan: Scan, broken: float) -> None:
    logits = torch.randn(3, 5000).bfloat16()
    logits[1, 4990] = broken
    values, _ = scan.best_tokens(logits)
    assert np.isfinite(values).tolist() == [True, False, True]
    assert len(scan.windows(logits, np.full(3, 5))[2].ids) >= 5


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("vocab_size", [1000, 128256])
def test_a_mass_is_known_within_its_error(scan: ModuleType, spread: float, vocab_size: int) -> None:
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(3)) * spread
    best = logits.amax(1)
    temperatures = [0.3, 0.77, 1.0, 2.5]
    inverse = np.array([1 / t for t in temperatures], dtype=np.float32)
    masses = scan.masses(logits, best.numpy(), inverse)
    scaled = (logits - best[:, None]).double() / torch.tensor(temperatures, dtype=torch.float64)[:, None]
    exact = scaled.exp().sum(1).numpy()
    assert (np.abs(masses / exact - 1) < MASS_ERROR / 2).all()
