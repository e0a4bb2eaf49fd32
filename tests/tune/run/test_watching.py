"""Signals, the progress of a run, and its model card."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from corral.tune.card import RunSummary, Sample, data_names, model_card
from corral.tune.config import DataConfig, ParametersConfig, RunConfig, Source
from corral.tune.progress import Pace, StepProgress, memory_in_use
from corral.tune.stopping import Stopping

CPU = torch.device("cpu")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_noted(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with Stopping() as stopping:
        assert (stopping.asked, stopping.signal_name, stopping.exit_code) == (False, "", 0)
        os.kill(os.getpid(), number)
        assert (stopping.asked, stopping.signal_name, stopping.exit_code) == (True, number.name, code)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.exit_code == code, "the first counts"
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_interrupt_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


STOPPED = """
import sys
from pathlib import Path
from corral.tune.stopping import Stopping
from tests.tune.run.small_run import SmallRun

run = SmallRun(Path(sys.argv[1])).resume()
with Stopping() as stopping:
    while run.standing.step < 10_000 and not stopping.asked:
        run.train(run.standing.step + 1)
        print(run.standing.step, flush=True)
    run.save()
sys.exit(stopping.exit_code)
"""


def test_a_run_that_is_asked_to_stop_saves_the_step_it_is_at(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.terminate()
        last = max([1, *map(int, process.stdout.read().split())])
    assert process.returncode == 143
    assert os.listdir(tmp_path / "checkpoints") == [f"step-{last:06d}"]


def shown(terminal: bool, every: int = 2) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=140, color_system=None)
    pace = Pace()
    with StepProgress(5, 1, every=every, console=console) as progress:
        for step in range(2, 6):
            pace.begin()
            time.sleep(0.01)
            pace.end(100)
            progress.show(step, {"loss": 2.5, "grad_norm": 0.75, "lr": 2e-4, "other": 1.0}, pace, CPU)
        progress.notice("saved [step 5] at path/to/it")
    return output.getvalue()


def test_without_a_terminal_every_so_many_steps_have_a_line() -> None:
    lines = shown(terminal=False).splitlines()
    assert [line.split(" · ")[0] for line in lines[:-1]] == ["step 2/5", "step 4/5", "step 5/5"]
    assert lines[0].startswith("step 2/5 · loss 2.5000 · grad norm 0.75 · lr 2.00e-04 · ")
    assert lines[0].split(" · ")[4].endswith(" tokens/s")
    assert lines[0].split(" · ")[5].endswith(" GB")
    assert lines[2].endswith(" · 0:00:00 left")
    assert lines[-1] == "saved [step 5] at path/to/it"


def test_on_a_terminal_one_line_changes_and_goes() -> None:
    text = shown(terminal=True)
    assert "5/5" in text
    assert "loss 2.5000" in text
    assert "step 4/5 ·" not in text
    assert "saved [step 5] at path/to/it" in text
    assert "\x1b[2K" in text, "the line is taken away"


def test_the_pace_is_that_of_steps() -> None:
    pace = Pace()
    assert (pace.tokens_per_second, pace.seconds_left(9)) == (0.0, 0.0)
    for _ in range(3):
        pace.begin()
        time.sleep(0.02)
        pace.end(50)
        time.sleep(0.05)  # saving
    assert 0 < pace.tokens_per_second <= 50 / 0.02
    assert pace.seconds_left(10) == pytest.approx(10 * 50 / pace.tokens_per_second)


def test_memory_is_what_the_process_holds() -> None:
    before = memory_in_use(CPU)
    held = torch.ones(50_000_000)
    assert memory_in_use(CPU) - before > 0.9 * held.nbytes


def summary(**changes: Any) -> RunSummary:
    run = RunSummary(
        name="my-run",
        model="org/llama-3.2-1b@main",
        config=RunConfig(data=DataConfig(train=["./chats/a|b.jsonl", Source(path="org/rows@v2")])),
        version="0.1.0",
        weights="adapter",
        rows=1200,
        held_out_rows=50,
        parameters=(1_000_000, 135_000_000),
        steps=300,
        total_steps=300,
        epochs=2.0,
        tokens=123_456,
        seconds=3723.4,
        lr=2e-4,
        device="a processor",
        before={"loss": 2.5, "accuracy": 0.25},
        after={"loss": 1.25, "accuracy": 0.5},
        best=(200, 1.2),
        training_loss=1.1,
        samples=(Sample("Who are you?", "I ```am``` it", "# not a heading"),),
        curve=True,
    )
    return replace(run, **changes)


def metadata(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---")[1])
    assert isinstance(found, dict)
    return found


def test_a_card_says_what_how_and_what_came_of_it() -> None:
    card = model_card(summary())
    assert metadata(card) == {
        "library_name": "peft",
        "base_model": "org/llama-3.2-1b",
        "datasets": ["org/rows"],
        "tags": ["corral", "sft", "lora"],
    }
    for line in (
        "`org/llama-3.2-1b@main`, trained by Corral 0.1.0: supervised fine-tuning of LoRA adapters on "
        "`a|b.jsonl`, `org/rows@v2`.",
        "| loss | 2.5000 | 1.2500 |",
        "| accuracy | 0.2500 | 0.5000 |",
        "The lowest loss there was 1.2000, after 200 steps.",
        "![The losses over the steps](loss.png)",
        "````text\nI ```am``` it\n````",
        "| trained | LoRA adapters: 1,000,000 of 135,000,000 numbers (0.74%) |",
        "| took | 1:02:03 on a processor |",
        "corral serve org/llama-3.2-1b@main --adapter tuned=./my-run/adapter",
    ):
        assert line in card, line
    assert "./chats" not in card, "nobody's business"
    assert "stopped" not in card


def test_a_card_of_a_whole_model_from_a_folder() -> None:
    whole = RunConfig(
        data=DataConfig(train="/home/me/rows.jsonl"),
        parameters=ParametersConfig(method="full"),
        objective="dpo",
    )
    card = model_card(
        summary(
            model="my-model",
            config=whole,
            weights="model",
            steps=7,
            before={},
            after={},
            samples=(),
            best=None,
        )
    )
    assert metadata(card) == {"library_name": "transformers", "tags": ["corral", "dpo", "full"]}
    assert "It was stopped after 7 of 300 steps." in card
    assert "corral serve ./my-run/model" in card
    assert "/home/me" not in card
    assert "| measure |" not in card
    assert "## Samples" not in card


def test_an_adapter_over_a_quantized_base_is_used_over_it() -> None:
    quantized = RunConfig(
        data=DataConfig(train="x.jsonl"), parameters=ParametersConfig(base="nf4", method="dora")
    )
    card = model_card(summary(config=quantized))
    assert "DoRA adapters on a nf4 base" in card
    assert "corral serve org/llama-3.2-1b@main --quantize nf4 --adapter tuned=./my-run/adapter" in card
    assert (
        "corral merge org/llama-3.2-1b@main ./my-run/adapter --base dequantized --out ./my-run-merged" in card
    )


def test_names_on_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "rows").mkdir()
    config = RunConfig(data=DataConfig(train=["local/rows", "org/rows", "/a/b.jsonl"]))
    assert data_names(config) == ["rows", "org/rows", "b.jsonl"]
