"""`--nproc`: one status, one sentence, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.tune.launch import launch

ROOT = Path(__file__).parents[3]
MODULE = "tests.tune.parallel.rank"


@pytest.fixture(autouse=True)
def _module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def test_each_process_has_its_number_and_all_arguments_and_the_first_speaks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(["say", str(tmp_path), "--set", "a=b"], 3, module=MODULE) == 0
    assert capfd.readouterr() == ("0 3 127.0.0.1", "")
    assert [(tmp_path / f"arguments-{rank}").read_text() for rank in range(3)] == [
        f"say {tmp_path} --set a=b"
    ] * 3


def test_what_all_say_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["all fail", str(tmp_path)], 3, module=MODULE) == 1
    assert capfd.readouterr().err == "corral: row 7 has no messages\n"


def test_the_one_that_failed_first_tells_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["second fails", str(tmp_path)], 2, module=MODULE) == 1
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "corral: another process is gone",
        "process 1 of 2 failed first:",
        "corral: row 7 has no messages",
    ]


def test_a_process_that_was_killed_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["second is killed", str(tmp_path)], 2, module=MODULE) == 128 + 9
    assert "process 1 of 2 failed first:\nkilled by signal 9" in capfd.readouterr().err


def test_a_process_that_hangs_is_ended_after_another_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.tune.launch.GRACE", 0.5)
    assert launch(["second fails, first hangs", str(tmp_path)], 2, module=MODULE) == 1
    assert capfd.readouterr().err == "process 1 of 2 failed first:\ncorral: row 7 has no messages\n"
    assert gone(tmp_path)


def test_a_signal_goes_to_all_and_its_status_comes_back(tmp_path: Path) -> None:
    launcher = start("stop when asked", tmp_path)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 128 + signal.SIGTERM
    assert sorted(file.name for file in tmp_path.glob("stopped-*")) == ["stopped-0", "stopped-1"]


def test_no_process_outlives_a_launcher_that_was_killed(tmp_path: Path) -> None:
    launcher = start("stop when asked", tmp_path)
    launcher.kill()
    launcher.wait()
    assert gone(tmp_path)


def start(what: str, folder: Path) -> subprocess.Popen[bytes]:
    """A launcher of two processes, which are there and listen to signals."""
    code = "import sys; from corral.tune.launch import launch; "
    code += f"sys.exit(launch(sys.argv[1:], 2, module={MODULE!r}))"
    launcher = subprocess.Popen([sys.executable, "-c", code, what, str(folder)])
    wait_for(lambda: len(list(folder.glob("ready-*"))) == 2)
    return launcher


def gone(folder: Path) -> bool:
    """Whether the processes end."""
    pids = [int(file.read_text()) for file in folder.glob("pid-*")]
    assert len(pids) == 2
    wait_for(lambda: not any(map(runs, pids)))
    return True


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(done: Callable[[], bool]) -> None:
    for _ in range(1200):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("it took more than a minute")
