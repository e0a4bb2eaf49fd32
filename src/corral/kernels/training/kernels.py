"""The kernels of training and the threads that run them; which tensors they take."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from corral.kernels import library
from corral.kernels.library import Library, Pool

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The types of tensors that the kernels take, and their numbers in corral_native.h."""


class TrainingKernels:
    """The native library's training calls, on a pool of threads of their own.

    Args:
        library: the native library.
        threads: how many; by default one for each physical core that this process may use.

    Raises:
        KernelError: the system does not start so many.
    """

    def __init__(self, library: Library, threads: int | None = None) -> None:
        self.library = library
        self.pool = Pool(library, threads)

    @property
    def threads(self) -> int:
        return self.pool.threads

    @property
    def multiplies_bf16(self) -> bool:
        """Whether the processor multiplies pairs of bfloat16."""
        return self.library.reads_pairs

    def run(self, name: str, call: ctypes.Structure) -> None:
        """Carries out one of `library.TRAINING_CALLS`. Other Python threads go on."""
        self.library.train(self.pool, name, call)

    def close(self) -> None:
        """Ends the threads. Later calls raise `KernelError`."""
        self.pool.close()


def load(threads: int | None = None) -> TrainingKernels | None:
    """The kernels of the library that is installed, with a pool of threads.

    None where there is none, and where CORRAL_ISA is "none": torch does the arithmetic then.

    Raises:
        KernelError: CORRAL_ISA names an instruction set that is not there, or the threads do not start.
    """
    native = library.load()
    return None if native is None else TrainingKernels(native, threads)


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """While this lasts, what is left to torch runs on the thread that asks for it.

    OpenMP's threads spin for milliseconds after each op, on cores that those of `TrainingKernels` need: a
    step takes half as long again. (With OMP_WAIT_POLICY=passive in the environment before torch is imported
    they sleep at once, and this is not needed.)
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: plain ones on the CPU, of one type of `TYPES`, not empty."""
    first = tensors[0]
    return first.dtype in TYPES and all(
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == first.dtype
        and x.layout == torch.strided
        and x.numel() > 0
        for x in tensors
    )
