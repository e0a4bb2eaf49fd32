"""Grammar masks as the sampler takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def bits_of(allowed: Sequence[int], vocab_size: int) -> Tensor:
    """int32 bits [ceil(vocab_size / 32)] with those of the allowed ids set."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))
