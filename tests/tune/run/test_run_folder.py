"""The folder of a run: whose it is, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from corral.tune.config import DataConfig, OptimizerConfig, ParametersConfig, RunConfig
from corral.tune.config_file import read_config
from corral.tune.environment import environment_of
from corral.tune.errors import TuneError
from corral.tune.identity import MAY_CHANGE, fingerprint, identity_of, settings_of, what_differs
from corral.tune.metrics_file import MetricsFile
from corral.tune.run_folder import RunFolder


def config(**settings: Any) -> RunConfig:
    return RunConfig(data=DataConfig(train="rows.jsonl"), **settings)


def test_a_run_keeps_its_settings_and_goes_on_with_the_same(tmp_path: Path) -> None:
    path = tmp_path / "some" / "run"
    with RunFolder(path, config(seed=7)) as folder:
        assert not folder.has_begun
        assert folder.checkpoints == path / "checkpoints"
    assert read_config(path / "config.yaml") == config(seed=7)
    with RunFolder(path, config(seed=7), resume=True) as folder:
        assert folder.has_begun
        assert folder.changed == ""


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path: Path) -> None:
    with RunFolder(tmp_path, config()):
        pass
    with pytest.raises(TuneError, match="holds a run; go on with it by --resume, or choose another output"):
        RunFolder(tmp_path, config())


def test_resume_begins_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    with RunFolder(tmp_path, config(), resume=True) as folder:
        assert not folder.has_begun


@pytest.mark.parametrize("resume", [False, True])
def test_other_files_are_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(TuneError, match=r"holds other files, such as thesis\.tex; choose another output"):
        RunFolder(tmp_path, config(), resume=resume)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(TuneError, match=r"thesis\.tex is a file; choose another output"):
        RunFolder(tmp_path / "thesis.tex", config())


def test_other_settings_are_refused_by_key(tmp_path: Path) -> None:
    with RunFolder(tmp_path, config()):
        pass
    other = config(parameters=ParametersConfig(rank=8), optimizer=OptimizerConfig(lr=1e-3), seed=3)
    message = (
        r"holds another run: optimizer\.lr is null there and 0\.001 here, parameters\.rank is 16 there and 8 "
        r"here, seed is 0 there and 3 here; go on with the same"
    )
    with pytest.raises(TuneError, match=message):
        RunFolder(tmp_path, other, resume=True)
    assert read_config(tmp_path / "config.yaml") == config()


def test_a_run_may_become_longer_and_says_so(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a", config(output="a")):
        pass
    (tmp_path / "a").rename(tmp_path / "b")
    with RunFolder(tmp_path / "b", config(output="b", epochs=3.0), resume=True) as folder:
        assert folder.changed == "epochs is 1.0 there and 3.0 here"
    assert read_config(tmp_path / "b" / "config.yaml").epochs == 3.0


@pytest.mark.parametrize("text", ["{", "[1]", "seed: x", "nothing: here"])
def test_settings_that_are_damaged_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(TuneError, match=r"config\.yaml is damaged, or of another version"):
        RunFolder(tmp_path, config(), resume=True)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path, config()):
        for resume in (False, True):
            with pytest.raises(TuneError, match=r"is in use by another run|holds a run"):
                RunFolder(tmp_path, config(), resume=resume)
        with pytest.raises(
            TuneError, match="is in use by another run; wait for it, or choose another output"
        ):
            RunFolder(tmp_path, config(), resume=True)
    with RunFolder(tmp_path, config(), resume=True):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from corral.tune.config import *\n"
        "from corral.tune.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]), RunConfig(data=DataConfig(train='rows.jsonl')))\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TuneError, match="is in use by another run"):
            RunFolder(tmp_path, config(), resume=True)
        process.send_signal(signal.SIGKILL)
    with RunFolder(tmp_path, config(), resume=True) as folder:
        assert folder.has_begun


def test_the_environment_is_versions_and_hardware_and_no_more(tmp_path: Path) -> None:
    environment = environment_of(torch.device("cpu"))
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["memory_gb"] > 0
    assert environment["processor"]
    text = json.dumps(environment)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text.replace('"/', "")
    with RunFolder(tmp_path, config()) as folder:
        assert folder.write_environment(environment) == ""
    with RunFolder(tmp_path, config(), resume=True) as folder:
        assert folder.write_environment(environment) == ""
        assert folder.write_environment({**environment, "python": "3.99"}).startswith("python is ")
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert kept == {**environment, "python": "3.99", "before": [environment]}


def test_metrics_are_cut_to_where_a_run_goes_on(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.cut(None)
    metrics.add(0, {"eval_loss": 3.0})
    for step in range(1, 6):
        metrics.add(step, {"loss": 1 / step, "grad_norm": float("nan")})
    metrics.add(5, {"eval_loss": 1.0})
    metrics.sync()
    whole = metrics.path.read_text()
    assert json.loads(whole.splitlines()[-2]) == {"step": 5, "loss": 0.2, "grad_norm": None}
    metrics.cut(5)
    assert metrics.path.read_text() == whole
    metrics.add(6, {"loss": 0.1})
    metrics.path.write_text(metrics.path.read_text() + '{"step": 7, "lo')
    assert [row["step"] for row in metrics.rows()] == [0, 1, 2, 3, 4, 5, 5, 6]
    metrics.cut(5)
    assert metrics.path.read_text() == whole
    metrics.cut(0)
    assert metrics.rows() == [{"step": 0, "eval_loss": 3.0}]
    metrics.cut(None)
    assert metrics.rows() == []


def test_a_disk_that_is_full_is_explained() -> None:
    full = MetricsFile(Path("/dev/full"))
    with pytest.raises(TuneError, match="/dev/full could not be written: No space left on device"):
        full.add(1, {"loss": 1.0})


def test_the_losses_are_drawn_from_what_was_logged(tmp_path: Path) -> None:
    with RunFolder(tmp_path, config()) as folder:
        folder.draw("run")
        assert not (tmp_path / "loss.png").exists()
        for step in (1, 2, 3):
            folder.metrics.add(step, {"loss": 3.0 - step})
        folder.draw("run")
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
        folder.write_card("# A run\n")
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.yaml", "lock", "loss.png", "metrics.jsonl"]


def test_only_what_changes_no_numbers_may_change() -> None:
    everything = config().to_dict()
    kept = settings_of(config())
    for key in MAY_CHANGE:
        *sections, name = key.split(".")
        there, here = everything, kept
        for section in sections:
            there, here = there[section], here[section]
        assert name in there, key
        assert name not in here, key
    assert {"seed", "optimizer", "schedule", "batch", "parameters", "objective"} <= set(kept)
    identity = identity_of(config(), "m1", "d1")
    assert what_differs(identity, identity_of(config(epochs=2.0), "m1", "d1")) == ""
    assert what_differs(identity, identity_of(config(seed=1), "m2", "d1", 4)) == (
        'number of processes is 1 there and 4 here, seed is 0 there and 1 here, weights of the model is "m1" '
        'there and "m2" here'
    )


def test_fingerprints_follow_the_files_not_their_place(tmp_path: Path) -> None:
    def write(folder: str, content: bytes) -> list[Path]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(content)
        return sorted((tmp_path / folder).iterdir())

    large = bytes(3 * 2**20)
    first = fingerprint(write("a", large))
    assert fingerprint(reversed(write("b", large))) == first
    assert fingerprint(write("b", large[:-1] + b"\1")) != first
    assert fingerprint(write("b", b"\1" + large[1:])) != first
    assert fingerprint(write("b", large + b"\0")) != first
    assert fingerprint(write("b", b"")) != first
