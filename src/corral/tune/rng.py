"""The states of the random number generators, as tensors that can be kept."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of Python's, NumPy's and PyTorch's generators, the last on the CPU and on a device."""
    version, words, gauss = random.getstate()
    of_numpy = np.random.get_state(legacy=False)
    assert (version, of_numpy["bit_generator"]) == (3, "MT19937"), "the generators of all supported versions"
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(of_numpy["state"]["key"].astype(np.int64)),
        "numpy.position": torch.tensor([of_numpy["state"]["pos"], of_numpy["has_gauss"]]),
        "numpy.gauss": torch.tensor(of_numpy["gauss"], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["torch.cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Sets the generators to a state that `rng_state` gave; that of another kind of device is left out."""
    words, gauss = state["python"].tolist(), state["python.gauss"].tolist()
    random.setstate((3, tuple(words), gauss[0] if gauss else None))
    position, has_gauss = state["numpy.position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy.gauss"])))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "torch.cuda" in state:
        torch.cuda.set_rng_state(state["torch.cuda"], device)
