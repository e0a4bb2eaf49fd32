"""Whole runs: the command's, with a small model, through kill and resume, into the engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from corral import LLM
from corral.cli.main import run as command
from corral.tune.config_file import read_config
from corral.tune.inputs import Inputs
from corral.tune.run import run
from tests.checkpoints.writers import write_chat_model

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Say {word}"},
            {"role": "assistant", "content": f"{word} it is"},
        ]
    }
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
]
PAIRS = [
    {"prompt": f"Say {word}", "chosen": f"{word} it is", "rejected": "No."}
    for word in ("one", "two", "three", "four")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_chat_model(folder)
    return folder


def write_rows(folder: Path, rows: Sequence[Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(tmp_path: Path, model: Path, rows: Sequence[Any] = ROWS, /, **more: Any) -> list[str]:
    """Of a short run in float32."""
    given = {
        "data.train": str(write_rows(tmp_path, rows)),
        "model": str(model),
        "output": str(tmp_path / "run"),
        "data.packing": False,
        "batch.size": 2,
        "batch.accumulation": 2,
        "compute.dtype": "float32",
        "compute.threads": 1,
        "parameters.rank": 4,
        "optimizer.lr": 0.01,
        "epochs": 3,
        "logging.to": [],
        **more,
    }
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_learns_and_leaves_what_it_promises(tmp_path: Path, model: Path, method: str) -> None:
    more = {"parameters.method": method, "evaluation.prompts": ["Say one"], "evaluation.max_tokens": 4}
    config = read_config(None, settings(tmp_path, model, **{"data.eval_fraction": 0.2, **more}))
    assert run(config) == 0
    folder = tmp_path / "run"
    seen = losses(folder)
    assert seen[-1] < seen[0] - 0.2
    assert {"config.yaml", "environment.json", "metrics.jsonl", "README.md", "loss.png", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert "Say one" in card
    assert "not trained on" in card


def test_the_engine_gives_the_log_probabilities_of_the_trainer(tmp_path: Path, model: Path) -> None:
    config = read_config(None, settings(tmp_path, model, **{"data.eval_fraction": 0.3}))
    assert run(config) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    evaluated = [row["eval_loss"] for row in rows if "eval_loss" in row]
    held_out = Inputs.open(config).data.eval
    assert held_out is not None
    total, count = 0.0, 0
    with LLM(model, dtype="float32", adapters={"tuned": tmp_path / "run" / "adapter"}) as llm:
        for item in held_out:
            scored = llm.score([item.tokens.tolist()], adapter="tuned")[0]  # type: ignore[union-attr]
            logprobs = (float("nan"),) * scored.start + scored.token_logprobs
            for logprob, trained in zip(logprobs, item.trained.tolist(), strict=True):  # type: ignore[union-attr]
                total, count = (total + logprob, count + 1) if trained else (total, count)
    assert -total / count == pytest.approx(evaluated[-1], rel=1e-4)
    assert evaluated[-1] < evaluated[0]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, model: Path, dropout: float) -> None:
    more = {"parameters.dropout": dropout, "checkpoints.every": 1, "epochs": 8}
    whole = tmp_path / "whole"
    assert run(read_config(None, settings(tmp_path, model, **more, output=str(whole)))) == 0
    arguments = [sys.executable, "-m", "corral", "tune", "sft"]
    for setting in settings(tmp_path, model, **more):
        arguments += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
    killed = tmp_path / "run"
    while process.poll() is None and not (killed / "checkpoints" / "step-000003").is_dir():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert run(read_config(None, settings(tmp_path, model, **more)), resume=True) == 0
    assert losses(killed) == losses(whole)
    same = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (whole, killed)]
    assert same[0] == same[1]


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(tmp_path: Path, model: Path) -> None:
    more = {"epochs": 60, "checkpoints.every": None}
    arguments = [sys.executable, "-m", "corral", "tune", "sft"]
    for setting in settings(tmp_path, model, **more):
        arguments += ["--set", setting]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Stopped by SIGTERM and saved after step" in said
    done = len(losses(tmp_path / "run"))
    shorter = {**more, "epochs": done / 3 + 1}
    assert run(read_config(None, settings(tmp_path, model, **shorter)), resume=True) == 0
    assert len(losses(tmp_path / "run")) > done


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "reward"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_are_learned(tmp_path: Path, model: Path, objective: str, method: str) -> None:
    more = {"parameters.method": method, "epochs": 4, "optimizer.lr": 0.01}
    given = settings(tmp_path, model, PAIRS, **more)
    config = read_config(None, given, objective=objective)
    if (objective, method) == ("reward", "lora"):
        assert command(["tune", "reward", *(part for one in given for part in ("--set", one))]) == 1
        return
    assert run(config) == 0
    seen = losses(tmp_path / "run")
    assert seen[-1] < seen[0]


def test_a_second_run_does_not_write_over_the_first(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", "sft", *(p for one in settings(tmp_path, model) for p in ("--set", one))]
    assert command(arguments) == 0
    before = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert command(arguments) == 1
    assert "holds a run; go on with it by --resume, or choose another output" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters.targets": ["q_prj"]}, "q_prj"),
        ({"data.train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"data.max_length": 100_000}, "max_length is 100,000"),
        ({"schedule.warmup": 1000}, "schedule.warmup is 1000 steps"),
        ({"parameters.base": "nf4", "parameters.method": "full"}, "parameters."),
        ({"parallel.tensor": 2}, "parallel.tensor is 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    arguments = [p for one in settings(tmp_path, model, **change) for p in ("--set", one)]
    assert command(["tune", "sft", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    mended = [p for one in settings(tmp_path, model, epochs=0.3) for p in ("--set", one)]
    assert command(["tune", "sft", *mended]) == 0


def test_the_settings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["tune", "--print-config"]) == 0
    assert "train: rows.jsonl" in capsys.readouterr().out
    assert command(["tune", "sft", "--data", "a: b.jsonl", "--set", "epochs=3", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "epochs: 3.0" in shown
    assert "train: 'a: b.jsonl'" in shown


def test_the_data_is_inspected(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(write_rows(tmp_path, ROWS))
    assert command(["tune", "inspect", rows, "--model", str(model)]) == 0
    assert "one it is" in capsys.readouterr().out


def test_threads_stay_as_they_were(tmp_path: Path, model: Path) -> None:
    before = torch.get_num_threads()
    assert run(read_config(None, settings(tmp_path, model, epochs=0.4, **{"compute.threads": 2}))) == 0
    assert torch.get_num_threads() == before
