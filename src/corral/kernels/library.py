"""Finds and loads the native library (native/include/corral_native.h) with ctypes."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from corral.errors import CorralError

logger = logging.getLogger(__name__)

ABI_VERSION = 2
FILE_NAME = "libcorral_native.dylib" if sys.platform == "darwin" else "libcorral_native.so"

TRAINING_CALLS = (
    "multiply",
    "attend_packed",
    "attend_packed_backward",
    "norm_rows",
    "norm_rows_backward",
    "gate_elements",
    "gate_elements_backward",
    "rotate_heads",
    "token_logprobs",
    "logits_gradient",
)
"""What `corral.kernels.training` calls."""

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "corral_isas": (c_char_p, ()),
    "corral_pick": (c_void_p, (c_char_p, POINTER(c_char_p))),
    "corral_kernels_name": (c_char_p, (c_void_p,)),
    "corral_kernels_read_pairs": (c_int32, (c_void_p,)),
    "corral_cores": (c_int32, ()),
    "corral_pool_open": (c_void_p, (c_int32,)),
    "corral_pool_threads": (c_int32, (c_void_p,)),
    "corral_pool_close": (None, (c_void_p,)),
    "corral_pool_free": (None, (c_void_p,)),
    "corral_program_create": (c_void_p, (c_void_p, c_void_p)),
    "corral_run_steps": (c_int32, (c_void_p, c_int32, c_void_p)),
    "corral_program_free": (None, (c_void_p,)),
    "corral_find_best": (c_int32, (c_void_p, c_void_p, c_void_p)),
    "corral_exp_sums": (
        c_int32,
        (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p),
    ),
    **{f"corral_{name}": (c_int32, (c_void_p, c_void_p, c_void_p)) for name in TRAINING_CALLS},
}
_DONE, _CLOSED = 0, 1


class KernelError(CorralError):
    """An instruction set that CORRAL_ISA asks for and this machine does not run, threads that do not start,
    or a pool of threads that has been closed."""


class LibraryMissingError(Exception):
    """There is no native library that can be used. The message says why, as half a sentence."""


class Library:
    """The native library with the kernels of one instruction set.

    Args:
        path: the shared library; by default the one that was installed with Corral.
        isa: "generic"; on x86 "avx2", "avx512vnni" or "avx512bf16", on ARM "neon"; by default the best
            that runs here.

    Raises:
        LibraryMissingError: the file is not there, does not load, or belongs to another version of Corral.
        KernelError: there is no such instruction set here.
    """

    def __init__(self, path: Path | None = None, isa: str | None = None) -> None:
        self._c = _bind(path or _installed_path())
        error = c_char_p()
        self._kernels = self._c.corral_pick(isa.encode() if isa else None, byref(error))
        if not self._kernels:
            raise KernelError((error.value or b"").decode())
        self.isa: str = self._c.corral_kernels_name(self._kernels).decode()
        self.reads_pairs = bool(self._c.corral_kernels_read_pairs(self._kernels))
        """Whether caches of bfloat16 may lie in pairs: `CacheType::bf16_pairs` in native/src/kernels.h."""
        self.supported_isas: tuple[str, ...] = tuple(self._c.corral_isas().decode().split())
        """The instruction sets that this machine runs, best first."""
        self.cores: int = self._c.corral_cores()
        """Physical cores that this process may use: the number of threads that pays."""

    def create_program(self, spec: ctypes.Structure) -> int:
        """The handle of a program made of a `structures.ProgramSpec`."""
        handle: int | None = self._c.corral_program_create(byref(spec), self._kernels)
        if handle is None:
            raise MemoryError("no memory for the buffers of a program")
        return handle

    def run_steps(self, pool: Pool, steps: ctypes.Array[Any]) -> None:
        """Runs `structures.Step`s, one after the other. Other Python threads go on.

        Raises:
            KernelError: the pool has been closed.
        """
        _check(self._c.corral_run_steps(steps, len(steps), pool.handle))

    def destroy_program(self, program: int) -> None:
        """Gives a program's memory back."""
        self._c.corral_program_free(program)

    def find_best(self, pool: Pool, call: ctypes.Structure) -> None:
        """Carries out a `structures.Best`."""
        _check(self._c.corral_find_best(self._kernels, pool.handle, byref(call)))

    def exp_sums(
        self, pool: Pool, logits: int, rows: int, columns: int, best: int, factors: int, sums: int
    ) -> None:
        """sums[row] = the sum of e^((logit - best) * factor) over a row; all are addresses of float32."""
        status = self._c.corral_exp_sums(
            self._kernels, pool.handle, logits, rows, columns, best, factors, sums
        )
        _check(status)

    def train(self, pool: Pool, name: str, call: ctypes.Structure) -> None:
        """Carries out one of `TRAINING_CALLS`, with its structure of corral_native.h."""
        _check(getattr(self._c, f"corral_{name}")(self._kernels, pool.handle, byref(call)))

    def open_pool(self, threads: int) -> int:
        """The handle of a new pool, for `Pool`."""
        handle: int | None = self._c.corral_pool_open(threads)
        if handle is None:
            raise KernelError(f"the system does not start {threads} threads; ask for fewer")
        return handle

    def close_pool(self, pool: int) -> None:
        """Waits for a run under way and ends the threads."""
        self._c.corral_pool_close(pool)

    def free_pool(self, pool: int) -> None:
        """Closes a pool and gives its memory back."""
        self._c.corral_pool_free(pool)


def _check(status: int) -> None:
    if status == _CLOSED:
        raise KernelError("the threads of this engine have been closed")
    if status != _DONE:
        raise MemoryError("no memory for the buffers of a step")


class Pool:
    """Threads that share the work of a step; the one that asks for the step is one of them.

    Args:
        library: the native library.
        threads: how many; by default one for each physical core that this process may use.

    Raises:
        KernelError: the system does not start so many.
    """

    def __init__(self, library: Library, threads: int | None = None) -> None:
        self.library = library
        self.threads = threads or library.cores
        self.handle = library.open_pool(self.threads)

    def close(self) -> None:
        """Ends the threads, after a step that is under way. Later steps raise `KernelError`."""
        self.library.close_pool(self.handle)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.library.free_pool(self.handle)


@cache
def load() -> Library | None:
    """The native library, with the instruction set that CORRAL_ISA in the environment names, or the best.

    None, and one line in the log that says why, where there is none: PyTorch does the arithmetic then. None
    too if CORRAL_ISA is "none".
    CORRAL_LIBRARY, for developers, is the path of another build.

    Raises:
        KernelError: CORRAL_ISA names an instruction set that is not there.
    """
    path, isa = os.environ.get("CORRAL_LIBRARY"), os.environ.get("CORRAL_ISA")
    if isa == "none":
        return None
    try:
        return Library(Path(path) if path else None, isa)
    except LibraryMissingError as error:
        logger.warning("Corral runs on PyTorch alone, which is slower: %s", error)
        return None


def _installed_path() -> Path:
    """Where packages are: in an editable install the sources of the package lie elsewhere."""
    try:
        return Path(str(distribution("corral").locate_file(f"corral/kernels/{FILE_NAME}")))
    except PackageNotFoundError:
        raise LibraryMissingError("Corral is not installed") from None


def _bind(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise LibraryMissingError(
            "its native kernels were not built when it was installed; install a C++ compiler "
            "(g++ or clang++), then Corral again"
        )
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.corral_abi_version())
        if version == ABI_VERSION:
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
    except (OSError, AttributeError) as error:
        raise LibraryMissingError(f"its native kernels do not load ({error}); install Corral again") from None
    raise LibraryMissingError(
        f"its native kernels at {path} have interface version {version}, and {ABI_VERSION} is needed; "
        "install Corral again"
    )
