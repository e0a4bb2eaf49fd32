"""Checkpoints are whole or not there, go on bit for bit, and refuse what they do not belong to."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from corral.tune.errors import TuneError
from corral.tune.feed import Position
from corral.tune.rng import rng_state, set_rng_state
from corral.tune.saving import Best, Checkpoints, Standing
from tests.tune.run.small_run import SmallRun

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_goes_on_has_the_losses_of_one_that_never_stopped(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    whole = SmallRun(tmp_path / "whole", dtype)
    losses = whole.train(17)
    assert len(set(losses)) == 17
    assert losses[-1] < losses[0]
    first = SmallRun(tmp_path, dtype)
    assert first.train(6) == losses[:6]
    first.save()
    second = SmallRun(tmp_path, dtype).resume()
    assert second.standing == first.standing
    assert second.standing.counters["tokens"] > 0
    assert second.train(17) == losses[6:]
    assert all(torch.equal(whole.parameters[name], value) for name, value in second.parameters.items())
    assert second.standing == whole.standing


def test_all_generators_go_on() -> None:
    device = torch.device("cpu")

    def draw() -> list[float]:
        drawn = [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.random()]
        return [*drawn, *torch.randn(3).tolist()]

    for _ in range(2):  # with, and without a second normal number in store
        random.gauss(0, 1)
        np.random.standard_normal()
        kept = rng_state(device)
        drawn = draw()
        set_rng_state(kept, device)
        assert draw() == drawn


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    steps = 25
    expected = {i + 1: loss.hex() for i, loss in enumerate(SmallRun(tmp_path / "whole").train(steps))}
    command = [sys.executable, "-m", "tests.tune.run.small_run", str(tmp_path), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kill_after = random.Random(time.time_ns()).randint(3, 18)
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    end = time.monotonic() + 240
    while not any(int(name.split("-")[1]) >= kill_after for name in names_of_steps(tmp_path)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was still at work"
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=240)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert {step for step, _ in lines} == set(range(1, steps + 1))
    assert all(loss == expected[step] for step, loss in lines)
    assert names(tmp_path) == ["step-000024", "step-000025"]


def names_of_steps(folder: Path) -> list[str]:
    checkpoints = folder / "checkpoints"
    return (
        [name for name in os.listdir(checkpoints) if name.startswith("step-")] if checkpoints.exists() else []
    )


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, keep=2)
    for loss in (3.0, 2.0, None, 2.5, float("nan"), 2.25):
        run.train(run.standing.step + 1)
        run.save(loss)
    assert names(tmp_path) == ["best.json", "step-000002", "step-000005", "step-000006"]
    assert run.checkpoints.best() == Best(2, 2.0)
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == {
        "checkpoint": "step-000002",
        "step": 2,
        "loss": 2.0,
    }
    run.train(7)
    run.save(1.5)
    assert names(tmp_path) == ["best.json", "step-000006", "step-000007"]
    assert run.checkpoints.latest() == 7


def test_without_keep_best_only_the_last_ones_stay(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, keep=1, keep_best=False)
    for loss in (1.0, 2.0, 3.0):
        run.train(run.standing.step + 1)
        run.save(loss)
    assert names(tmp_path) == ["best.json", "step-000003"]


def test_going_on_from_an_earlier_one_forgets_what_came_after_it(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, keep=3)
    for loss in (3.0, 2.0, 1.0):
        run.train(run.standing.step + 1)
        run.save(loss)
    again = SmallRun(tmp_path, keep=3)
    again.standing = again.checkpoints.restore(1, again.parameters, again.optimizer)
    again.train(2)
    again.save(2.5)
    assert names(tmp_path) == ["best.json", "step-000001", "step-000002"]
    assert again.checkpoints.best() == Best(2, 2.5)


def test_the_one_before_goes_only_when_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path, keep=1)
    seen: list[list[str]] = []
    remove = Checkpoints._remove

    def watched(self: Checkpoints, step: int) -> None:
        seen.append(names(tmp_path))
        remove(self, step)

    monkeypatch.setattr(Checkpoints, "_remove", watched)
    for _ in range(3):
        run.train(run.standing.step + 1)
        run.save()
    assert seen == [["step-000001", "step-000002"], ["step-000002", "step-000003"]]


def test_what_was_left_half_done_is_not_taken_and_goes(tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    assert run.checkpoints.latest() is None
    run.train(1)
    run.save()
    for name in (".step-000009.partial", ".step-000008.removed", "notes"):
        shutil.copytree(run.checkpoints.path(1), tmp_path / "checkpoints" / name)
    assert run.checkpoints.steps() == [1]
    run.train(2)
    run.save()
    assert names(tmp_path) == ["notes", "step-000001", "step-000002"]


FULL = """
import resource, sys
from pathlib import Path
from corral.tune.errors import TuneError
from tests.tune.run.small_run import SmallRun

run = SmallRun(Path(sys.argv[1])).resume()
run.train(4)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    run.save()
except TuneError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 300_000])
def test_a_disk_that_fills_up_leaves_the_last_one(tmp_path: Path, limit: int) -> None:
    run = SmallRun(tmp_path)
    run.train(3)
    before = content(run.save())
    command = [sys.executable, "-c", FULL, str(tmp_path), str(limit)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "checkpoints/step-000004 could not be written: " in result.stdout
    assert "File too large" in result.stdout
    assert result.stdout.endswith("; step-000003 is whole: go on from it when there is room\n")
    assert names(tmp_path) == ["step-000003"]
    assert content(run.checkpoints.path(3)) == before
    again = SmallRun(tmp_path).resume()
    assert again.standing == run.standing


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path)
    run.train(1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
        with pytest.raises(
            TuneError, match=r"step-000001 could not be written: the disk has 0\.0 GB free, and it takes"
        ):
            run.save()
    assert names(tmp_path) == []

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(TuneError, match="written: No space left on device; no earlier one is kept"):
            run.save()
    assert names(tmp_path) == []
    run.save()


@pytest.mark.parametrize("file", ["parameters.safetensors", "optimizer.safetensors", "rng-00000.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut", "a bit"])
def test_a_damaged_one_is_refused_by_name(tmp_path: Path, file: str, damage: str) -> None:
    run = SmallRun(tmp_path)
    run.train(2)
    path = run.save() / file
    whole = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-7])
    else:
        whole[-100] ^= 4
        path.write_bytes(whole)
    message = "is missing" if damage == "gone" else "is not what was written"
    other = SmallRun(tmp_path)
    before = {name: value.detach().clone() for name, value in other.parameters.items()}
    with pytest.raises(
        TuneError, match=rf"step-000002 is damaged: {file} {message}; delete it, and the run goes on"
    ):
        other.resume()
    assert all(torch.equal(before[name], value) for name, value in other.parameters.items())
    assert other.optimizer.steps == 0


STATE = {
    "version": 1,
    "step": 1,
    "position": {"step": 1},
    "counters": {},
    "loss": None,
    "identity": {},
    "files": {},
}
WITHOUT_EPOCH = json.dumps(STATE)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "step": "1"}', WITHOUT_EPOCH]
)
def test_a_state_that_is_damaged_is_refused(tmp_path: Path, text: str) -> None:
    run = SmallRun(tmp_path)
    run.train(1)
    (run.save(1.0) / "state.json").write_text(text)
    with pytest.raises(
        TuneError, match=r"step-000001 (is damaged: state\.json|was written by another version)"
    ):
        SmallRun(tmp_path).resume()
    assert run.checkpoints.best() is None
    run.save(1.0)
    SmallRun(tmp_path).resume()


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (
            {"parameters": {"rank": 8, "targets": "all-linear"}},
            r"parameters\.rank is 16 there and 8 here; go on",
        ),
        ({"rows of the data": "2f"}, 'rows of the data is "1f" there and "2f" here'),
        ({"number of processes": 2}, "number of processes is null there and 2 here"),
    ],
)
def test_one_of_another_run_is_refused_by_what_differs(
    tmp_path: Path, identity: dict[str, Any], message: str
) -> None:
    run = SmallRun(tmp_path)
    run.train(1)
    run.save()
    with pytest.raises(TuneError, match=f"step-000001 belongs to another run: {message}"):
        SmallRun(tmp_path, identity=identity).resume()


def test_one_of_other_shapes_is_refused_by_name(tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    run.train(1)
    run.save()
    parameters = dict(run.parameters)
    parameters["model.norm.weight"] = torch.nn.Parameter(torch.zeros(65))
    with pytest.raises(
        TuneError, match=r"has model\.norm\.weight as float32 \[64\], and it is float32 \[65\] here"
    ):
        run.checkpoints.restore(1, parameters, run.optimizer)
    del parameters["model.norm.weight"]
    with pytest.raises(
        TuneError, match=r"step-000001 has a foreign model\.norm\.weight; it belongs to other"
    ):
        run.checkpoints.restore(1, parameters, run.optimizer)


def test_a_store_that_is_spread_is_written_by_each_process(tmp_path: Path) -> None:
    """Two processes, one after the other: a process that waits is one that has nothing to say."""

    class Spread:
        spread = True

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def write(self, folder: Path, groups: Any) -> None:
            for group, tensors in groups.items():
                save_file(dict(tensors), folder / f"{group}-{self.rank}.safetensors")

        def read(self, folder: Path, groups: Any) -> Any:
            return {group: load_file(folder / f"{group}-{self.rank}.safetensors") for group in groups}

    first = SmallRun(tmp_path, store=Spread(0))
    first.train(1)
    trouble: list[str | None] = []

    class Second:
        """Writes its part when the first has made the folder."""

        rank = 0

        def agree(self, said: str | None) -> str | None:
            partial = tmp_path / "checkpoints" / ".step-000001.partial"
            if len(trouble) == 1 and partial.exists():
                Spread(1).write(partial, {"parameters": {"x": torch.ones(2)}})
            trouble.append(said)
            return said

    checkpoints = Checkpoints(tmp_path / "checkpoints", {}, store=Spread(0), processes=Second())
    path = checkpoints.save(Standing(1, Position(0, 1)), first.parameters, first.optimizer)
    assert trouble == [None] * 3
    files = json.loads((path / "state.json").read_text())["files"]
    assert sorted(files) == [
        "optimizer-0.safetensors",
        "parameters-0.safetensors",
        "parameters-1.safetensors",
        "rng-00000.safetensors",
    ]
    assert checkpoints.restore(1, first.parameters, first.optimizer) == Standing(1, Position(0, 1))


def test_a_trouble_of_one_process_is_that_of_all(tmp_path: Path) -> None:
    class Troubled:
        rank = 0
        calls = 0

        def agree(self, said: str | None) -> str | None:
            self.calls += 1
            return "disk quota exceeded on another machine" if self.calls == 2 else said

    run = SmallRun(tmp_path, processes=Troubled())
    with pytest.raises(TuneError, match="could not be written: disk quota exceeded on another machine"):
        run.save()
    assert names(tmp_path) == []
