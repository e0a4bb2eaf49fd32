"""`corral cache` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from corral.cli.main import run
from corral.kernels.packed import pack
from corral.kernels.packed_cache import CacheKey, PackedCache
from tests.kernels.test_packed_cache import WEIGHT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CORRAL_PACKED_CACHE_GB", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache" / "packed"


def keep(file: Path, *beside: str) -> int:
    """Keeps packed weights that were made from a file and others beside it; gives their bytes."""
    files = [file, *(file.with_name(name) for name in beside)]
    for each in files:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.write_bytes(b"weights")
    key = CacheKey.of(files, {"as_stored": True, "dtype": "bfloat16"})
    assert PackedCache().store(key, {"lm_head": pack(WEIGHT)}, {}) is None
    return (PackedCache().folder / key.file_name).stat().st_size


def test_models_are_listed_by_the_names_that_people_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path / "cache" / "models" / "smollm2" / "a.gguf")
    keep(tmp_path / "mine.gguf")
    keep(tmp_path / "folder" / "config.json", "model.safetensors")
    total = 4 * keep(tmp_path / "hub" / "models--org--name" / "blobs" / "0a1b")
    assert run(["cache", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    names = {"smollm2", str(tmp_path / "mine.gguf"), str(tmp_path / "folder"), "org/name"}
    assert {entry["model"] for entry in facts["entries"]} == names
    assert facts["total_bytes"] == total == sum(entry["bytes"] for entry in facts["entries"])
    assert {(entry["dtype"], entry["as_stored"]) for entry in facts["entries"]} == {("bfloat16", True)}
    assert facts["folder"] == str(PackedCache().folder)
    assert run(["cache"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*names, "4 models", "8.", facts["folder"]))


def test_a_damaged_file_is_listed_and_cleared_too(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path / "mine.gguf")
    (folder / "broken.packed").write_bytes(b"x" * 100)
    assert run(["cache"]) == 0
    assert "damaged: broken.packed" in capsys.readouterr().out
    assert run(["cache", "clear", "--yes"]) == 0
    assert "Removed 2 models" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    assert (tmp_path / "mine.gguf").exists(), "only what can be made again goes"


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("y\n", 0), ("\n", 0)])
def test_on_a_terminal_it_asks_before_it_clears(
    answer: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    keep(tmp_path / "mine.gguf")
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert run(["cache", "clear"]) == 0
    assert len(list(folder.iterdir())) == left


def test_an_empty_cache_is_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache"]) == 0
    assert "0 models" in capsys.readouterr().out
    assert run(["cache", "clear"]) == 0
    assert f"Nothing is kept in {folder}" in capsys.readouterr().out
    assert not folder.exists()


def test_it_says_that_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORRAL_PACKED_CACHE_GB", "0")
    assert run(["cache"]) == 0
    assert "CORRAL_PACKED_CACHE_GB is 0" in capsys.readouterr().out


def test_a_file_that_stays_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path / "mine.gguf")
    monkeypatch.setattr(PackedCache, "clear", lambda _: 0)
    assert run(["cache", "clear", "--yes"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("corral: ")
    assert error.count("\n") == 1
    assert "cannot be removed" in error


@pytest.mark.parametrize(
    "arguments", [["cache", "clean"], ["cache", "--yes"], ["cache", "clear", "everything"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert run(arguments) == 2


def test_neither_listing_nor_clearing_imports_torch(tmp_path: Path) -> None:
    keep(tmp_path / "mine.gguf")
    code = (
        "import sys\nfrom corral.cli.main import run\n"
        "assert run(['cache', '--json']) == run(['cache']) == run(['cache', 'clear']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="")
    assert result.returncode == 0, result.stderr


class Terminal:
    """A terminal on which something is typed."""

    def __init__(self, text: str) -> None:
        self._text = text

    def isatty(self) -> bool:
        return True

    def readline(self, *_: int) -> str:
        text, self._text = self._text, ""
        return text
