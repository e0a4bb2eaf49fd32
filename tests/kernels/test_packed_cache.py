"""The cache of packed weights: what is stored comes back, and nothing else ever does."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from corral.kernels import packed_file
from corral.kernels.memory import Memory
from corral.kernels.packed import PackedMatrix, pack
from corral.kernels.packed_cache import CacheKey, PackedCache
from corral.quant import Affine, Codebook

WEIGHT = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
VECTORS: dict[str, NDArray[Any]] = {
    "norm": np.arange(5, dtype=np.float32),
    "table": np.ones((2, 3), np.int64),
}


def matrices() -> dict[str, PackedMatrix]:
    return {
        "float": pack(WEIGHT),
        "u4": pack(Affine.quantize(WEIGHT, 4, 32, symmetric=False)),
        "u8": pack(Affine.quantize(WEIGHT, 8, 16)),
        "lut": pack(Codebook.quantize(WEIGHT)),
    }


@pytest.fixture(autouse=True)
def no_limit_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_PACKED_CACHE_GB", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(256)) * 1000)
    return file


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(tmp_path / "packed")


def stored(cache: PackedCache, source: Path) -> CacheKey:
    key = CacheKey.of([source], {"exact": False})
    assert cache.store(key, matrices(), VECTORS) is None
    return key


@pytest.mark.parametrize("memory", [None, Memory()], ids=["mapped", "read"])
def test_what_is_stored_comes_back(cache: PackedCache, source: Path, memory: Memory | None) -> None:
    key = stored(cache, source)
    found = cache.load(key, memory, check_content=True)
    assert found is not None
    for name, matrix in matrices().items():
        assert found.matrices[name].layout == matrix.layout
        assert np.array_equal(found.matrices[name].data, matrix.data)
        assert torch.equal(found.matrices[name].dequantize(), matrix.dequantize())
    assert {n: (t.dtype, t.tolist()) for n, t in found.tensors.items()} == {
        n: (t.dtype, t.tolist()) for n, t in VECTORS.items()
    }


def test_another_choice_or_a_changed_source_is_not_found(cache: PackedCache, source: Path) -> None:
    stored(cache, source)
    assert cache.load(CacheKey.of([source], {"exact": True})) is None
    status = source.stat()
    data = bytearray(source.read_bytes())
    data[10] ^= 1
    source.write_bytes(data)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    assert cache.load(CacheKey.of([source], {"exact": False})) is None
    stored(cache, source)
    assert len(cache.list_entries()) == 1, "the old file is overwritten"


def test_another_version_is_not_found(
    cache: PackedCache, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = stored(cache, source)
    file = cache.folder / key.file_name
    monkeypatch.setattr(packed_file, "VERSION", packed_file.VERSION + 1)
    file.rename(cache.folder / key.file_name)
    assert cache.load(key) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(where=st.integers(0, 3000), bits=st.integers(1, 255), cut=st.integers(0, 3 << 20))
def test_damaged_files_are_ignored(cache: PackedCache, source: Path, where: int, bits: int, cut: int) -> None:
    key = stored(cache, source)
    file = cache.folder / key.file_name
    whole = file.read_bytes()
    (length,) = struct.unpack_from("<Q", whole, 16)
    damaged = bytearray(whole)
    damaged[where % (64 + length) if where % (64 + length) not in range(56, 64) else 0] ^= bits
    file.write_bytes(damaged)
    assert cache.load(key) is None
    assert cache.load(key, Memory()) is None
    file.write_bytes(whole[: min(cut, len(whole) - 1)])
    assert cache.load(key) is None
    assert [entry.sources for entry in cache.list_entries()] == [()]
    stored(cache, source)
    assert cache.load(key) is not None, "it is written anew"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.sampled_from(["at", "rows", "columns", "group", "zero", "codes", "scales", "levels", "crc32"]),
    st.one_of(
        st.integers(-(2**70), 2**70), st.floats(), st.none(), st.text(max_size=4), st.lists(st.integers())
    ),
)
def test_a_header_that_lies_gives_nothing_or_what_lies_within_the_file(
    cache: PackedCache, source: Path, field: str, value: object
) -> None:
    """A checksum does not help against a writer with a bug, or one that means harm."""
    key = stored(cache, source)
    file = cache.folder / key.file_name
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data, 16)
    header = json.loads(data[64 : 64 + length])
    header["matrices"]["u4"][field] = value
    text = json.dumps(header).encode()
    start = packed_file._START.pack(
        b"CORRALPW", packed_file.VERSION, len(text), hashlib.sha256(text).digest()
    )
    file.write_bytes(
        (start.ljust(64, b"\0") + text).ljust(header["data_at"], b"\0") + data[header["data_at"] :]
    )
    found = cache.load(key, check_content=False)
    if found is not None:
        matrix = found.matrices["u4"]
        assert len(matrix.data) == matrix.layout.num_bytes
        assert matrix.layout.is_sound()


def test_content_is_checked_when_that_is_asked_for(cache: PackedCache, source: Path) -> None:
    key = stored(cache, source)
    file = cache.folder / key.file_name
    data = bytearray(file.read_bytes())
    data[2 << 20] ^= 1
    file.write_bytes(data)
    assert cache.load(key) is not None
    assert cache.load(key, check_content=True) is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = 4 << 20
    cache = PackedCache(tmp_path / "packed", limit=3 * size)
    matrix = {"m": pack(torch.zeros(16, (2 << 20) // 64))}
    keys = []
    for i in range(4):
        file = tmp_path / f"{i}.gguf"
        file.write_bytes(b"x")
        keys.append(CacheKey.of([file], {}))
    now = time.time()
    for i, key in enumerate(keys[:3]):
        assert cache.store(key, matrix, {}) is None
        os.utime(cache.folder / key.file_name, (now - 100 + i, now - 100 + i))
    assert cache.load(keys[0]) is not None  # now 1 is the oldest
    assert cache.store(keys[3], matrix, {}) is None
    assert [cache.load(key) is not None for key in keys] == [True, False, True, True]
    assert sum(entry.num_bytes for entry in cache.list_entries()) <= cache.limit


def test_a_mapped_file_outlives_its_removal(cache: PackedCache, source: Path) -> None:
    found = cache.load(stored(cache, source))
    assert found is not None
    entries = cache.list_entries()
    assert entries[0].sources == (str(source.resolve()),)
    assert cache.clear() == entries[0].num_bytes
    assert cache.list_entries() == []
    assert torch.equal(found.matrices["float"].dequantize(), WEIGHT)


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path, source: Path) -> None:
    cache = PackedCache(tmp_path / "packed", limit=1000)
    notice = cache.store(CacheKey.of([source], {}), matrices(), VECTORS)
    assert notice is not None
    assert "CORRAL_PACKED_CACHE_GB" in notice
    assert PackedCache(tmp_path / "packed", limit=0).store(CacheKey.of([source], {}), matrices(), {}) is None
    assert cache.list_entries() == []


def test_a_folder_that_cannot_be_written_gives_a_sentence(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = PackedCache(tmp_path / "file" / "packed")
    key = CacheKey.of([source], {})
    assert cache.load(key) is None
    notice = cache.store(key, matrices(), VECTORS)
    assert notice is not None
    assert "not kept" in notice
    assert "\n" not in notice


def test_a_full_disk_gives_a_sentence(
    cache: PackedCache, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1 << 20))
    notice = cache.store(CacheKey.of([source], {}), matrices(), VECTORS)
    assert notice is not None
    assert "nearly full" in notice


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path))
    monkeypatch.setenv("CORRAL_PACKED_CACHE_GB", "1.5")
    assert (PackedCache().folder, PackedCache().limit) == (tmp_path / "packed", 1_500_000_000)
    for nonsense in ("", "much", "nan", "inf"):
        monkeypatch.setenv("CORRAL_PACKED_CACHE_GB", nonsense)
        assert PackedCache().limit == 32 * 10**9
