"""A few rows of activations times a quantized matrix, read from its packed codes (Triton).

Each program makes BLOCK_N columns of the result for 16 rows of x. It walks along the columns of the weights,
BLOCK_K at a time and always in this order, in tiles whose size does not depend on how many rows of x there
are: a row's result has the same bits alone and among 16. Weights are unpacked in float32, rounded to the
type of x as `dequantize` rounds them, multiplied, and summed in float32.

Codes of 4 bits lie two to a byte. Even columns are in the low halves, odd ones in the high halves: each half
is multiplied with the columns of x that it belongs to.

With TRITON_INTERPRET=1 set before Triton is first imported, the kernel runs on a CPU, slowly, for tests.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from corral.quant.compact import Compact
from corral.quant.small_products import block_columns

_BLOCK_ROWS = 16  # the least that a tensor core takes
_BLOCK_N = 32


def small_matmul(x: Tensor, weight: Compact) -> Tensor:
    """x [n, columns] times a matrix that `has_kernel` says yes to: [n, rows] in the type of x."""
    form, tensors = weight.form, weight.tensors
    rows, columns = weight.shape
    x = x.contiguous()
    output = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    if output.numel() == 0:
        return output
    unused = tensors["scale"]  # a pointer that is not read
    zero = form.settings.get("zero", 0)
    grid = (triton.cdiv(rows, _BLOCK_N), triton.cdiv(x.shape[0], _BLOCK_ROWS))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _small_matmul[grid](
            x,
            tensors["codes"],
            tensors["scale"],
            tensors.get("zero", unused),
            tensors.get("offset", unused),
            tensors.get("levels", unused),
            output,
            x.shape[0],
            rows,
            columns,
            form.settings["group_size"],
            CODE_BITS=form.code_bits,
            ZERO=zero if "zero" not in tensors else 0,
            ZEROS="zero" in tensors,
            OFFSETS="offset" in tensors,
            LEVELS="levels" in tensors,
            # Triton's interpreter multiplies no bfloat16.
            WIDEN=x.device.type == "cpu",
            BLOCK_ROWS=_BLOCK_ROWS,
            BLOCK_N=_BLOCK_N,
            BLOCK_K=block_columns(weight),
            # Code times scale is rounded before the offset is added, as in `dequantize`.
            enable_fp_fusion=False,
        )
    return output


# The number of rows of x is a number to the compiler, never a constant: one program for all.
@triton.jit(do_not_specialize=["x_rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _small_matmul(  # type: ignore[no-untyped-def]
    x_at,
    codes_at,
    scale_at,
    zero_at,
    offset_at,
    levels_at,
    output_at,
    x_rows,
    rows,
    columns,
    group_size,
    CODE_BITS: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    OFFSETS: tl.constexpr,
    LEVELS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    PARTS: tl.constexpr = 8 // CODE_BITS  # codes in a byte
    m = (tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m_there, n_there = m < x_rows, n < rows
    k = tl.arange(0, BLOCK_K // PARTS)
    groups, width = columns // group_size, columns // PARTS
    total = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    for start in range(0, columns, BLOCK_K):
        group = n * groups + start // group_size
        scale = tl.load(scale_at + group, mask=n_there, other=0).to(tl.float32)[:, None]
        bytes_at = codes_at + n[:, None] * width + start // PARTS + k[None, :]
        codes = tl.load(bytes_at, mask=n_there[:, None], other=0)
        for part in tl.static_range(PARTS):
            code = codes.to(tl.int32) >> (part * CODE_BITS) & ((1 << CODE_BITS) - 1)  # [BLOCK_N, columns]
            if LEVELS:
                values = tl.load(levels_at + code) * scale
            else:
                values = code.to(tl.float32)
                if ZEROS:
                    zero = tl.load(zero_at + group, mask=n_there, other=0)
                    values = values - zero.to(tl.float32)[:, None]
                else:
                    values = values - ZERO
                values = values * scale
            if OFFSETS:
                offset = tl.load(offset_at + group, mask=n_there, other=0)
                values = values + offset.to(tl.float32)[:, None]
            x_columns = start + k * PARTS + part
            x = tl.load(x_at + m[:, None] * columns + x_columns[None, :], mask=m_there[:, None], other=0)
            values = values.to(x.dtype)
            if WIDEN:
                x, values = x.to(tl.float32), values.to(tl.float32)
            total = tl.dot(x, tl.trans(values), total, input_precision="ieee")
    tl.store(
        output_at + m[:, None] * rows + n[None, :],
        total.to(output_at.dtype.element_ty),
        mask=m_there[:, None] & n_there[None, :],
    )
