"""The native library is found, checked and chosen from; where there is none, one line says so."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.errors import CorralError
from corral.kernels import library as module
from corral.kernels.library import KernelError, Library, LibraryMissingError, Pool, load

ISAS = ("avx512bf16", "avx512vnni", "avx2", "neon", "generic")
SOURCE = "int corral_abi_version(void) { return %d; }"


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.delenv("CORRAL_ISA", raising=False)
    try:
        return Library(_other_build())
    except LibraryMissingError as error:
        if shutil.which("g++") or shutil.which("clang++"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def fresh_load() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


def _other_build() -> Path | None:
    path = os.environ.get("CORRAL_LIBRARY")
    return Path(path) if path else None


def _compile(folder: Path, source: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "other.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "other.so", folder / "other.c"], check=True)
    return folder / "other.so"


def test_the_best_of_the_supported_instruction_sets_is_chosen(native: Library) -> None:
    assert native.isa == native.supported_isas[0]
    assert native.supported_isas == tuple(isa for isa in ISAS if isa in native.supported_isas)
    assert native.supported_isas[-1] == "generic"


def test_each_supported_instruction_set_can_be_forced(native: Library) -> None:
    for isa in native.supported_isas:
        assert Library(_other_build(), isa).isa == isa


@pytest.mark.parametrize("name", ["abacus", "AVX2", "avx2 ", "x" * 1000])
def test_an_unknown_instruction_set_is_refused_with_the_choices(native: Library, name: str) -> None:
    with pytest.raises(KernelError, match=r"CORRAL_ISA is '.*generic") as caught:
        Library(_other_build(), name)
    assert isinstance(caught.value, CorralError)
    assert " ".join(native.supported_isas) in str(caught.value)


@pytest.mark.usefixtures("native", "fresh_load")
def test_corral_isa_in_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_ISA", "generic")
    library = load()
    assert library is not None
    assert library.isa == "generic"
    load.cache_clear()
    monkeypatch.setenv("CORRAL_ISA", "abacus")
    with pytest.raises(KernelError, match="CORRAL_ISA is 'abacus'"):
        load()


@pytest.mark.usefixtures("fresh_load")
def test_without_a_library_load_says_once_that_the_slower_path_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CORRAL_LIBRARY", str(tmp_path / "none.so"))
    with caplog.at_level(logging.WARNING):
        assert load() is None
        assert load() is None
    assert len(caplog.messages) == 1
    assert "PyTorch alone, which is slower" in caplog.messages[0]
    assert "install a C++ compiler" in caplog.messages[0]


def test_a_library_that_is_no_library_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("hello")
    with pytest.raises(LibraryMissingError, match="do not load"):
        Library(tmp_path / "text.so")


def test_a_library_with_another_interface_version_is_not_used(tmp_path: Path) -> None:
    other = module.ABI_VERSION + 1
    path = _compile(tmp_path, SOURCE % other)
    with pytest.raises(
        LibraryMissingError, match=f"have interface version {other}, and {module.ABI_VERSION}"
    ):
        Library(path)


def test_a_library_of_something_else_is_not_used(tmp_path: Path) -> None:
    path = _compile(tmp_path, "int something(void) { return 1; }")
    with pytest.raises(LibraryMissingError, match="do not load"):
        Library(path)


def test_importing_the_library_module_does_not_import_torch() -> None:
    code = "import sys, corral.kernels.library; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_affinity_bounds_the_cores_that_are_counted(native: Library) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    assert 1 <= native.cores <= len(before)
    seen: list[int] = []

    def count() -> None:
        os.sched_setaffinity(0, {min(before)})  # of this thread alone
        seen.append(Library(_other_build()).cores)

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    assert seen == [1]


def test_a_pool_has_a_thread_for_each_core_unless_told_otherwise(native: Library) -> None:
    assert Pool(native).threads == native.cores
    for threads in (1, 3, 64):
        assert Pool(native, threads).threads == threads


def test_a_pool_may_be_closed_twice(native: Library) -> None:
    pool = Pool(native, 2)
    pool.close()
    pool.close()


def test_threads_of_a_pool_end_with_it(native: Library) -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc here")
    before = len(list(tasks.iterdir()))
    pool = Pool(native, 8)
    assert len(list(tasks.iterdir())) == before + 7
    pool.close()
    assert len(list(tasks.iterdir())) == before
