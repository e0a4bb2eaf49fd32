"""Where a product with few rows of activations has a kernel that reads the packed codes."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor

from corral.quant.affine import Affine
from corral.quant.codebook import NF4, Codebook
from corral.quant.compact import Compact
from corral.quant.matmul import Matrix

logger = logging.getLogger(__name__)

MOST_ROWS = 16
"""More rows of activations than these: unpacking the weights once and a dense product take over."""

_CAPABILITY = (8, 0)  # the first whose tensor cores multiply bfloat16
_FEWEST_COLUMNS = 32  # of a block, and so of a group: 16 bytes of 4-bit codes


def small_product(x: Tensor, weight: Matrix) -> Tensor | None:
    """x [n, columns] times a quantized matrix: [n, rows] in the type of x; None where no kernel does it."""
    if not isinstance(weight, Affine | Codebook | Compact) or not 1 <= x.shape[0] <= MOST_ROWS:
        return None
    compact = weight if isinstance(weight, Compact) else Compact.of(weight, packed=False)
    if not has_kernel(compact, x.dtype) or not _runs_on(x.device):
        return None
    from corral.quant.triton_matmul import small_matmul

    return small_matmul(x, compact)


def has_kernel(weight: Compact, dtype: torch.dtype) -> bool:
    """Whether codes, groups and types are among those of `corral.quant.triton_matmul`."""
    form = weight.form
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    if form.family not in ("affine", "codebook") or form.code_bits not in (4, 8):
        return False
    if not all(tensor.is_contiguous() for tensor in weight.tensors.values()):
        return False
    return block_columns(weight) >= _FEWEST_COLUMNS and "order" not in weight.tensors


def block_columns(weight: Compact) -> int:
    """Columns that the kernel takes at once: a power of two that divides the groups."""
    size: int = weight.form.settings["group_size"]
    return min(128, size & -size)


@lru_cache
def _runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels run there; tried once, with a small one, for it needs a compiler to start."""
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return False
    try:
        from corral.quant.triton_matmul import small_matmul

        weight = Compact.of(
            Codebook(
                torch.tensor(NF4, device=device),
                64,
                torch.zeros(64, 64, dtype=torch.uint8, device=device),
                torch.ones(64, 1, device=device),
            )
        )
        small_matmul(torch.ones(1, 64, device=device, dtype=torch.bfloat16), weight)
    except ImportError:
        logger.info("Triton is not installed: quantized weights are unpacked for every product on %s", device)
        return False
    except Exception as error:  # what a compiler or a driver raises is not told anywhere
        logger.warning("Triton does not run on %s (%s): quantized weights are unpacked there", device, error)
        return False
    return True
