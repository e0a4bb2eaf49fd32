"""The kernels of a GPU for few rows: compiled where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corral.quant import Affine, small_products
from corral.quant.compact import Compact
from corral.quant.small_products import MOST_ROWS, has_kernel, small_product
from tests.quant.families import example

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not ON_GPU:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton is imported already, to compile; run this file alone", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"

from corral.quant.triton_matmul import small_matmul  # noqa: E402

KINDS = (
    "3 bits",
    "4 bits",
    "4 bits with offsets",
    "4 bits with zeros",
    "8 bits",
    "8 bits, a scale to each row",
    "nf4",
    "fp4",
)
# The interpreter cuts numbers to bfloat16 instead of rounding them.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8 if ON_GPU else 2**-6}


def on_device(kind: str, rows: int, packed: bool = True) -> tuple[Compact, Tensor]:
    """A weight as kernels read it, and what it stands for."""
    weight = example(kind, rows, 256)
    compact = Compact.of(weight, packed=packed)
    return Compact(compact.form, {n: t.to(DEVICE) for n, t in compact.tensors.items()}), weight.dequantize()


def random_rows(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, 256, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_it_is_the_product_with_what_the_weight_stands_for(kind: str, dtype: torch.dtype) -> None:
    rows = 37  # the last tile is not full
    for packed in (True, False):
        weight, dense = on_device(kind, rows, packed)
        assert has_kernel(weight, dtype)
        x = random_rows(3, dtype)
        got = small_matmul(x, weight)
        assert got.dtype == dtype
        assert got.shape == (3, rows)
        expected = x.double().cpu() @ dense.to(dtype).double().T
        error = (got.double().cpu() - expected).norm() / expected.norm()
        assert error < ROUNDING[dtype]


@pytest.mark.parametrize("kind", ["4 bits with offsets", "8 bits", "nf4"])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_a_row_has_the_same_bits_however_many_there_are(kind: str, dtype: torch.dtype) -> None:
    weight, _ = on_device(kind, 40)
    x = random_rows(MOST_ROWS, dtype)
    together = small_matmul(x, weight)
    for count in (1, 2, 5):
        for first in (0, 7, MOST_ROWS - count):
            assert torch.equal(
                small_matmul(x[first : first + count], weight), together[first : first + count]
            )


def test_rows_that_are_not_next_to_each_other_and_none_at_all() -> None:
    weight, _ = on_device("4 bits", 40)
    wide = random_rows(8, torch.float32)
    assert torch.equal(small_matmul(wide[::2], weight), small_matmul(wide, weight)[::2])
    assert small_matmul(wide[:0], weight).shape == (0, 40)


def test_what_has_no_kernel_is_left_alone() -> None:
    columns = torch.zeros(4, 48, dtype=torch.uint8)
    narrow = Affine(4, 16, columns, torch.ones(4, 3))
    for weight in (
        narrow,
        example("2 bits"),
        example("4 bits in activation order"),
        example("fp8"),
    ):
        assert not has_kernel(Compact.of(weight), torch.bfloat16)
    assert not has_kernel(Compact.of(example("4 bits")), torch.float64)
    made = example("8 bits")
    assert isinstance(made, Affine)
    apart = Affine(8, 32, made.codes.t().contiguous().t(), made.scale, made.zero)
    assert not has_kernel(Compact.of(apart, packed=False), torch.bfloat16)
    assert has_kernel(Compact.of(apart), torch.bfloat16)
    many = torch.ones(MOST_ROWS + 1, 128)
    assert small_product(many, example("4 bits")) is None
    assert small_product(many[:1], example("fp8")) is None


def test_few_rows_are_given_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    small_products._runs_on.cache_clear()
    weight = example("4 bits").to(DEVICE)
    x = random_rows(3, torch.float32)[:, :128]
    got = small_product(x, weight)
    small_products._runs_on.cache_clear()
    assert got is not None
    assert torch.equal(got, small_matmul(x, Compact.of(weight, packed=False)))


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
@pytest.mark.parametrize("kind", ["4 bits with offsets", "nf4"])
def test_a_gpu_takes_it_for_few_rows_and_a_graph_replays_it(kind: str) -> None:
    weight, dense = on_device(kind, 48)
    x = random_rows(4, torch.bfloat16)
    assert small_product(x, weight) is not None
    weight.matmul(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = weight.matmul(x)
    x.copy_(2 * x)
    graph.replay()
    expected = x.double() @ dense.to(DEVICE).double().T
    assert (y.double() - expected).norm() / expected.norm() < 2**-7


_COMPILE = """
import itertools, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from corral.quant.triton_matmul import _small_matmul

sizes = ("x_rows", "rows", "columns", "group_size")
kinds = [(dict(ZEROS=False, OFFSETS=True, LEVELS=False), "bf16", 4),
         (dict(ZEROS=True, OFFSETS=False, LEVELS=False), "fp16", 8),
         (dict(ZEROS=False, OFFSETS=False, LEVELS=True), "bf16", 4)]
for capability, (kind, number, bits) in itertools.product((80, 90), kinds):
    constants = dict(kind, CODE_BITS=bits, ZERO=0, WIDEN=False, BLOCK_ROWS=16, BLOCK_N=32, BLOCK_K=32)
    pointers = dict(x_at=number, codes_at="u8", scale_at="fp16", zero_at="u8", offset_at="fp16",
                    levels_at="fp32", output_at=number)
    signature = {name: f"*{of}" for name, of in pointers.items()}
    signature |= dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=_small_matmul, signature=signature, constexprs=constants, attrs={})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32),
                          options={"enable_fp_fusion": False})
    assert made.asm["cubin"], "no machine code"
    assert "mma.sync" in made.asm["ptx"], "no tensor cores"
    assert "fma.rn.f32" not in made.asm["ptx"], "an offset is added before the product is rounded"
print("compiled")
"""


def test_it_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """To machine code, by Triton's own assembler. That needs a process that interprets nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "compiled", done.stderr
