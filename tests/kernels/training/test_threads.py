"""Torch's threads keep out of the way of the kernels' for as long as they are told to."""

from __future__ import annotations

import pytest
import torch

from corral.kernels.training.kernels import torch_on_one_thread


def test_torch_has_its_threads_back_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch_on_one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), torch_on_one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
