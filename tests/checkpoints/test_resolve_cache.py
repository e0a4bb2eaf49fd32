"""The cache: files that appear whole or not at all, on a disk that may be full."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

import pytest

from corral.checkpoints.cache import (
    cache_folder,
    disk_errors,
    hub_cache_folder,
    require_space,
    whole_file,
    work_folder,
)
from corral.errors import ResolveError


def test_the_caches_lie_where_the_environment_says(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (cache_folder(), hub_cache_folder()) == (caches / "corral", caches / "huggingface" / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/models")
    assert hub_cache_folder() == Path("/models")
    for name in ("CORRAL_CACHE", "HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert (cache_folder(), hub_cache_folder()) == (Path("/xdg/corral"), Path("/xdg/huggingface/hub"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/corral")


def write_until(target: Path, error: BaseException) -> None:
    with whole_file(target) as file:
        file.write(b"half")
        raise error


def test_a_disk_that_fills_while_writing_is_named_and_left_clean(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(ResolveError, match=re.escape(str(target))):
        write_until(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ResolveError, match="The disk is full: /dev/full"), disk_errors("/dev/full"):
        Path("/dev/full").write_bytes(b"x")  # the kernel's own full disk


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with pytest.raises(KeyboardInterrupt):
        write_until(target, KeyboardInterrupt())
    assert list(target.parent.iterdir()) == []
    with whole_file(target) as file:
        file.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"


def test_work_folders_of_killed_processes_are_removed_after_a_day(caches: Path) -> None:
    root = caches / "corral" / "tmp"
    old, young = root / "old", root / "young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "piece").touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    with work_folder() as mine:
        assert set(root.iterdir()) == {young, mine}
    assert set(root.iterdir()) == {young}


def test_space_is_asked_of_the_disk_that_will_hold_a_folder_not_made_yet(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1, "This")
    with pytest.raises(ResolveError, match=rf"This needs .* on the disk of {re.escape(str(tmp_path))},"):
        require_space(tmp_path / "not" / "yet", 1 << 60, "This")
