"""Processes find each other, agree, and fail together."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.scale.errors import ParallelError
from corral.scale.processes import Processes, is_one_of_many
from corral.tune.launch import launch

ROOT = Path(__file__).parents[2]


def test_two_processes_talk_and_the_failure_of_one_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch([str(tmp_path)], 2, module="tests.scale.group") == 1
    assert "process 1 of 2 failed first:\ncorral: row 7 has no messages" in capfd.readouterr().err
    assert "another process of this run ended" in (tmp_path / "lost-0").read_text()
    assert not (tmp_path / "lost-1").exists()
    for rank in range(2):
        assert "parallel.tensor is 3, which does not divide 2 processes" in (
            (tmp_path / f"uneven-{rank}").read_text()
        )


def test_a_process_that_nobody_started_as_one_of_many_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not is_one_of_many()
    with pytest.raises(ParallelError, match=r"RANK is not set, .* start it by torchrun"):
        Processes.join()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert is_one_of_many()
    with pytest.raises(ParallelError, match="WORLD_SIZE is 'two'"):
        Processes.join()


def test_a_process_without_a_device_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "64", "LOCAL_RANK": "63"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParallelError, match="process 63 of this machine has no GPU"):
        Processes.join("cuda")
    with pytest.raises(ParallelError, match=r"compute\.device is 'mps'"):
        Processes.join("mps")
