"""2 and 4 processes do what 1 does: losses, gradients, weights after three steps, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corral.checkpoints.checkpoint import GenerationConfig
from corral.checkpoints.hf_writer import SideFiles, write_tensors
from corral.checkpoints.source import open_checkpoint
from corral.text.tokenizer import Tokenizer
from corral.tune.launch import launch
from corral.tune.reference import model_hash
from tests.random_models import random_model
from tests.text.vocabularies import chatml_tokenizer_json
from tests.tune.parallel.cases import CASES, CHECKPOINTED
from tests.tune.parallel.runs import TIED, Case, Outcome, Run, feed
from tests.tune.parallel.worker import take

ROOT = Path(__file__).parents[3]
STORED = replace(TIED, vocab_size=400)
ALL = [(world, name) for world, cases in CASES.items() for name in cases]
SAVED = [(world, name) for world, cases in CHECKPOINTED.items() for name in cases]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 2 processes did, and then 4, each started once."""
    folder = tmp_path_factory.mktemp("parallel")
    write_model(folder / "model")
    out = folder / "out"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
        patch.setenv("OMP_NUM_THREADS", "1")
        assert launch([str(out)], 2, module="tests.tune.parallel.worker") == 0
        assert launch([str(out), str(out)], 4, module="tests.tune.parallel.worker") == 0
    return out


def write_model(folder: Path) -> None:
    """A folder as others write it, in several files."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    write_tensors(folder, random_model(STORED).named_parameters(), max_shard_bytes=40_000)
    SideFiles(STORED, GenerationConfig(eos_token_ids=(2,)), Tokenizer.from_hf(folder)).write(folder)


@cache
def by_one(case: Case, count: int = 3) -> Outcome:
    """What one process does."""
    plain = Case(case.model, case.method, dtype=case.dtype, targets=case.targets)
    return Run(plain).steps(count)


def read(file: Path) -> Outcome:
    content: dict[str, Any] = torch.load(file)
    return Outcome(**content)


def assert_close(mine: dict[str, Tensor], one: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == one.keys()
    for name, tensor in one.items():
        scale = float(tensor.abs().max()) or 1.0
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize(("world", "name"), ALL)
def test_losses_gradients_and_weights_are_those_of_one_process(outcomes: Path, world: int, name: str) -> None:
    case = CASES[world][name]
    mine, one = read(outcomes / f"{name}.pt"), by_one(case)
    exact = case.dtype == torch.float32
    assert mine.losses == pytest.approx(one.losses, rel=1e-5 if exact else 1e-3)
    assert mine.norms == pytest.approx(one.norms, rel=1e-5 if exact else 3e-3)
    assert mine.tokens == one.tokens
    assert_close(mine.gradients, one.gradients, 3e-6 if exact else 2e-2)
    assert_close(mine.weights, one.weights, 3e-6 if exact else 1e-2)


def test_the_steps_have_changed_the_weights_and_left_over_windows_are_among_them() -> None:
    case = CASES[2]["sharded"]
    one = by_one(case)
    before = dict(Run(case).model.named_parameters())
    assert all((before[name] - weight).abs().max() > 1e-3 for name, weight in one.weights.items())
    steps = list(islice(feed(None), 3))
    assert [len(step.microbatches) for step in steps] == [4, 4, 3], "which neither 2 nor 4 share evenly"


@pytest.mark.parametrize("name", [name for _, name in SAVED])
def test_a_resumed_run_goes_on_bit_for_bit(outcomes: Path, name: str) -> None:
    third, resumed = read(outcomes / f"{name}-third.pt"), read(outcomes / f"{name}-resumed.pt")
    assert resumed.losses == third.losses
    assert resumed.norms == third.norms
    assert all(torch.equal(resumed.weights[key], weight) for key, weight in third.weights.items())


@pytest.mark.parametrize("name", CHECKPOINTED[2])
def test_4_processes_go_on_from_the_checkpoint_of_2(outcomes: Path, name: str) -> None:
    third, resumed = read(outcomes / f"{name}-third.pt"), read(outcomes / f"{name}-resumed-from-2.pt")
    assert resumed.losses == pytest.approx(third.losses, rel=1e-5)
    assert_close(resumed.weights, third.weights, 3e-6)


@pytest.mark.parametrize(("world", "name"), SAVED)
def test_1_process_goes_on_from_the_checkpoint_of_several(outcomes: Path, world: int, name: str) -> None:
    case = CHECKPOINTED[world][name]
    run = Run(Case(case.model, case.method), seed=7)
    take(run, outcomes / name / "step-000002")
    third, resumed = read(outcomes / f"{name}-third.pt"), run.steps(1, start=2)
    assert resumed.losses == pytest.approx(third.losses, rel=1e-5)
    assert_close(resumed.weights, third.weights, 3e-6)


@pytest.mark.parametrize("name", ["2-1", "4-2"])
def test_a_folder_is_loaded_in_parts_and_written_whole(outcomes: Path, name: str) -> None:
    model, world = random_model(STORED), int(name[0])
    weights = dict(model.named_parameters())
    exported = open_checkpoint(outcomes / f"exported-{name}")
    found = dict(exported.tensors())
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weight) for key, weight in weights.items())
    assert exported.config == STORED
    assert exported.tokenizer().to_json() == Tokenizer.from_hf(outcomes.parent / "model").to_json()
    numbers = [int((outcomes / f"numbers-{name}-{rank}").read_text()) for rank in range(world)]
    whole = sum(weight.numel() for weight in weights.values())
    assert max(numbers) < 0.6 * whole, "each process has its part only"
    hashes = {(outcomes / f"hash-{name}-{rank}").read_text() for rank in range(world)}
    assert hashes == {model_hash(model)}


def test_a_folder_that_exists_is_refused_in_all_processes(outcomes: Path) -> None:
    said = {(outcomes / f"trouble-2-1-{rank}").read_text() for rank in range(2)}
    assert said == {f"{outcomes / 'exported-2-1'} exists and is not an empty folder; choose another"}
