"""Measures arrive where they are sent, and what does not work there does not end a run."""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.tune.errors import TuneError
from corral.tune.reporters import Reporters, TensorBoard, make_reporters


class Notices:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, description: str, done: int, total: int | None) -> None:
        """Nothing is downloaded."""


def events(folder: Path) -> Iterator[Any]:
    """What the event files of a folder hold: records of length, checksum, content, checksum."""
    event = importlib.import_module("tensorboardX.proto.event_pb2").Event

    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda file: file.name):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def test_tensorboard_has_every_measure_of_every_step(tmp_path: Path) -> None:
    with_two = make_reporters(["tensorboard", "tensorboard"], tmp_path, "corral", {})
    with_two.log(0, {"eval_loss": 2.5})
    for step in (1, 2):
        with_two.log(step, {"loss": 1 / step, "lr": 2e-4, "grad_norm": float("nan") if step == 2 else 3.0})
    with_two.close()
    found = scalars(tmp_path / "tensorboard")
    assert found[:4] == [
        ("eval/loss", 0, 2.5),
        ("train/loss", 1, 1.0),
        ("train/lr", 1, pytest.approx(2e-4)),
        ("train/grad_norm", 1, 3.0),
    ]
    assert [entry[:2] for entry in found[4:]] == [("train/loss", 2), ("train/lr", 2), ("train/grad_norm", 2)]


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = make_reporters(["tensorboard"], tmp_path, "corral", {})
    for step in range(1, 7):
        first.log(step, {"loss": float(step)})
    first.close()
    again = make_reporters(["tensorboard"], tmp_path, "corral", {}, step=4)
    for step in range(5, 9):
        again.log(step, {"loss": 10.0 * step})
    again.close()
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    values = {event.step: event.value for event in read.Scalars("train/loss")}
    assert values == {1: 1, 2: 2, 3: 3, 4: 4, 5: 50, 6: 60, 7: 70, 8: 80}


def test_a_run_that_goes_on_makes_later_steps_void(tmp_path: Path) -> None:
    reporter = TensorBoard(tmp_path, "corral", {}, 4)
    reporter.log(5, {"loss": 1.0})
    reporter.close()
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.session_log.status == 1]
    assert starts == [5], "TensorBoard forgets steps from 5 on of earlier files"


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorboard", "tensorboardX", "tune"), ("wandb", "wandb", "wandb"), ("trackio", "trackio", "trackio")],
)
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = (
        rf"logging\.to has {name}, which needs {module}: pip install 'corral\[{extra}\]', or leave it out"
    )
    with pytest.raises(TuneError, match=message):
        make_reporters([name], tmp_path, "corral", {})


def test_one_that_fails_is_told_of_once_and_left_out(tmp_path: Path) -> None:
    class Failing:
        def log(self, step: int, measures: Any) -> None:
            raise ConnectionError("no route to the server")

        def close(self) -> None:
            raise AssertionError("it was left out")

    notices, kept = Notices(), TensorBoard(tmp_path, "corral", {}, 0)
    reporters = Reporters([("wandb", Failing()), ("tensorboard", kept)], notices)
    reporters.log(1, {"loss": 1.0})
    reporters.log(2, {"loss": 2.0})
    reporters.close()
    assert notices.texts == [
        "wandb takes no more measures: no route to the server; the run goes on without it"
    ]
    assert [step for _, step, _ in scalars(tmp_path / "tensorboard")] == [1, 2]


def test_wandb_offline_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 2):
        reporters = make_reporters(["wandb"], tmp_path, "corral", {"optimizer": {"lr": 1.0}}, step, Notices())
        reporters.log(step + 1, {"loss": 1.0, "grad_norm": float("inf")})
        reporters.log(step + 2, {"loss": 0.5})
        reporters.close()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    name = (tmp_path / "wandb-id").read_text()
    assert len(runs) >= 1
    assert all(run.name.endswith(name) for run in runs), "a run that goes on is the same run"
    assert any(file.stat().st_size > 500 for run in runs for file in run.glob("*.wandb"))


def test_wandb_without_a_key_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb").teardown()  # it remembers its settings
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(
        TuneError, match=r"wandb does not start: .*; run `wandb login`, set WANDB_MODE=offline, or"
    ):
        make_reporters(["wandb"], tmp_path, "corral", {})


def test_trackio_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    notices = Notices()
    reporters = make_reporters(["trackio"], tmp_path / "my-run", "corral", {"seed": 1}, report=notices)
    reporters.log(1, {"loss": 1.0, "grad_norm": float("nan")})
    reporters.log(2, {"loss": 0.5})
    reporters.close()
    assert notices.texts == []
    databases = list((tmp_path / "trackio").rglob("*.db"))
    assert databases
    import sqlite3

    with sqlite3.connect(databases[0]) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("my-run", 1), ("my-run", 2)]
