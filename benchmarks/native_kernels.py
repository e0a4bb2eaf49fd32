"""How fast the matrix products of the native library are, on random weights.

    python benchmarks/native_kernels.py      the installed library at its best
    python benchmarks/native_kernels.py --isa avx2 --kinds u4 --rows 1 512

A matrix-vector product (one row of activations) is a stream of weights: its figure is GB/s, beside what a
plain sum over as much memory reads. Products with many rows are bound by arithmetic: their figure is billions
of multiply-accumulates per second and thread. Of many runs the fastest counts, since others may use the
machine. With --cpu-time, the time is what the thread itself ran, which leaves out what others took from it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.kernels.matmul_calls import Packed, Prepared, Weights, instruction_sets, matmul_call

Clock = Callable[[], float]


def random_matrix(kind: str, group: int, rows: int, columns: int) -> Packed:
    """A packed matrix of random bits: as large as one of weights, in huge pages if there are any."""
    rng = np.random.default_rng(0)
    values = np.zeros((16, columns), {"f32": np.float32, "bf16": np.uint16}.get(kind, np.uint8))
    scales = None if kind in ("f32", "bf16") else np.ones((16, -(-columns // group)), np.float16)
    levels = np.arange(0, 256, 16, dtype=np.uint8) if kind == "lut4" else None
    packed = Packed(Weights(kind, values, scales, None, group, 8, levels))
    one = packed.data
    if scales is not None:
        one[packed.codes_at :] = rng.integers(0, 256, len(one) - packed.codes_at, np.uint8)
    packed.struct.rows, packed.blocks = rows, -(-rows // 16)
    packed.data = huge(packed.blocks * packed.struct.block_bytes)
    packed.data.reshape(packed.blocks, -1)[:] = one
    packed.struct.data = packed.data.ctypes.data + packed.codes_at
    return packed


def huge(num_bytes: int) -> NDArray[np.uint8]:
    """Memory in huge pages."""
    from corral.kernels.memory import Memory

    return Memory().take(num_bytes)


def best_seconds(run: Callable[[int], None], threads: int, clock: Clock, seconds: float) -> float:
    """The shortest time of `run(thread)` on every thread at once, the slowest thread counting."""
    barrier = threading.Barrier(threads)
    times = [[0.0]] * threads
    deadline = time.perf_counter() + seconds
    going = [True]

    def work(thread: int) -> None:
        mine: list[float] = []
        while going[0] or not mine:
            barrier.wait()
            start = clock()
            run(thread)
            mine.append(clock() - start)
            if thread == 0:
                going[0] = time.perf_counter() < deadline or len(mine) < 3
            barrier.wait()
        times[thread] = mine

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    slowest: list[float] = [max(together) for together in zip(*times, strict=True)]
    return min(slowest)


def read_bandwidth(num_bytes: int, threads: int, clock: Clock, seconds: float) -> float:
    """GB/s of a sum over memory, by torch."""
    data = torch.from_numpy(huge(num_bytes).view(np.int64))
    data.fill_(1)
    parts = data.chunk(threads)
    return num_bytes / 1e9 / best_seconds(lambda i: void(parts[i].sum()), threads, clock, seconds)


def void(_: object) -> None:
    """Nothing."""


def measure(
    isa: str, packed: Packed, rows: int, threads: int, exact: bool, clock: Clock, seconds: float
) -> float:
    """Seconds of one product, the blocks shared by the threads."""
    group = 16 if packed.struct.group == 16 else 32
    x = np.random.default_rng(1).standard_normal((rows, packed.struct.columns)).astype(np.float32)
    prepared = Prepared(isa, x, group)
    out = np.zeros((rows, packed.struct.rows), np.float32)
    call = matmul_call(isa, packed, prepared, out, exact=exact)
    cuts = [packed.blocks * i // threads for i in range(threads + 1)]
    return best_seconds(lambda i: call((0, rows), (cuts[i], cuts[i + 1])), threads, clock, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", default=instruction_sets()[0] if instruction_sets() else None)
    parser.add_argument("--kinds", nargs="+", default=["u4", "lut4", "u8", "bf16", "f32"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 16, 512])
    parser.add_argument(
        "--shapes", nargs="+", default=["1536x576", "14336x4096"], help="rows x columns of a matrix"
    )
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.7, help="for each figure")
    options = parser.parse_args()
    if options.isa is None:
        parser.error("the native library was not built: install a C++ compiler, then Corral again")
    torch.set_num_threads(1)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    threads, seconds = options.threads, options.seconds
    print(f"{options.isa}, {threads} threads, group {options.group}")
    print(f"plain sum: {read_bandwidth(1 << 28, threads, clock, seconds):.1f} GB/s")
    print(f"{'kind':6}{'shape':>12}{'M':>5}{'us':>10}{'GB/s':>8}{'GMAC/s per thread':>19}")
    for kind in options.kinds:
        for shape in options.shapes:
            outputs, columns = map(int, shape.split("x"))
            for rows in options.rows:
                # Few rows: many matrices' worth, so that none of it waits in a cache.
                wanted = max(outputs, 300_000_000 // columns) if rows <= 8 else outputs
                packed = random_matrix(kind, options.group, wanted // 16 * 16, columns)
                taken = measure(options.isa, packed, rows, threads, options.exact, clock, seconds)
                gigabytes = len(packed.data) / 1e9
                macs = rows * packed.struct.rows * columns / 1e9
                print(
                    f"{kind:6}{shape:>12}{rows:5}{taken * 1e6:10.0f}{gigabytes / taken:8.1f}"
                    f"{macs / taken / threads:19.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
