"""What of the comparison with other engines can be tested without them."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(_BENCHMARKS))  # as for `python benchmarks/cpu_peers.py`, but not for other tests
child, environment, random_gguf, table, work, base, machine, run, cpu_peers = (
    import_module(name)
    for name in (
        "peers.child",
        "peers.environment",
        "peers.random_gguf",
        "peers.table",
        "peers.work",
        "peers.base",
        "peers.machine",
        "peers.run",
        "cpu_peers",
    )
)
sys.path.remove(str(_BENCHMARKS))
markdown, median, ratio, summary = table.markdown, table.median, table.ratio, table.summary
ROWS, Work = work.ROWS, work.Work
_DECODE = ROWS["decode"]


def _rounds(*speeds: float | None) -> list[dict[str, float] | None]:
    return [None if speed is None else {"decode_tok_s": speed} for speed in speeds]


def test_the_ratio_is_the_median_of_each_rounds_own_ratio() -> None:
    # In the second round the machine was ten times slower for both.
    assert ratio([200.0, 20.0, 220.0], [100.0, 10.0, 110.0]) == 2.0


def test_a_round_that_failed_for_one_of_two_counts_for_neither_ratio() -> None:
    assert ratio([200.0, 1.0], [100.0, None]) == 2.0
    assert ratio([None], [100.0]) is None


def test_no_figures_have_no_median() -> None:
    assert median([None, None]) is None
    assert median([]) is None


def test_the_best_peer_is_the_one_that_corral_is_least_ahead_of() -> None:
    rounds = {
        ("same", "corral"): _rounds(300.0),
        ("same", "a"): _rounds(100.0),
        ("same", "b"): _rounds(200.0),
    }
    (row,) = summary(rounds, [_DECODE], ["corral", "a", "b"])
    assert row["ratios"] == {"a": 3.0, "b": 1.5}
    assert row["against_best"] == 1.5


def test_a_table_shows_medians_with_ratios_and_a_dash_for_what_was_not_run() -> None:
    rounds = {("same", "corral"): _rounds(310.0, 290.0, 300.0), ("same", "a"): _rounds(100.0, 100.0, 100.0)}
    peers = ["corral", "a", "absent"]
    lines = markdown(summary(rounds, [_DECODE], peers), peers).splitlines()
    assert lines[0] == "| tok/s | corral | a | absent | Corral / best peer |"
    assert lines[2] == f"| {_DECODE.title} | 300 | 100.0 (3.00x) | – | 3.00x |"
    assert {line.count("|") for line in lines} == {6}


def test_a_table_without_corral_has_no_ratios() -> None:
    rounds = {("same", "a"): _rounds(100.0)}
    lines = markdown(summary(rounds, [_DECODE], ["corral", "a"]), ["corral", "a"]).splitlines()
    assert lines[2] == f"| {_DECODE.title} | – | 100.0 | – |"


@pytest.mark.parametrize("name", ROWS)
def test_prompts_have_the_length_asked_for_and_begin_unalike(name: str) -> None:
    work = ROWS[name].work
    prompts = list(islice(work.prompts(seed=0), 4))
    assert {len(prompt) for prompt in prompts} == {work.prompt_tokens}
    assert len({prompt[0] for prompt in prompts}) == 4
    assert prompts == list(islice(work.prompts(seed=0), 4))


def test_rows_of_the_same_work_differ_in_their_figure() -> None:
    assert len({(row.work, row.metric) for row in ROWS.values()}) == len(ROWS)


class _Clockwork:
    """Takes 1 s for a prompt of any length and 0.1 s for each further token."""

    def __init__(self, loses: int = 0) -> None:
        self.now, self.loses = 0.0, loses

    def single(self, prompt: list[int], new_tokens: int) -> list[float]:
        self.now += 1.0
        return [self.now + 0.1 * number for number in range(new_tokens - self.loses)]

    def many(self, prompts: Sequence[list[int]], new_tokens: int) -> int:
        self.now += 2.0
        return len(prompts) * new_tokens - self.loses


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clockwork:
    clockwork = _Clockwork()
    monkeypatch.setattr(child.time, "perf_counter", lambda: clockwork.now)
    return clockwork


def test_prefill_ends_with_the_first_token_and_decoding_begins_after_it(clock: _Clockwork) -> None:
    found = child._single(clock, Work("", "135M", "same", prompt_tokens=50, new_tokens=11), seed=0)
    assert found == pytest.approx({"prefill_tok_s": 50.0, "decode_tok_s": 10.0})


def test_many_requests_count_new_tokens_over_all_the_time(clock: _Clockwork) -> None:
    found = child._many(clock, Work("", "135M", "best", 50, 11, slots=4), seed=0)
    assert found == pytest.approx({"output_tok_s": 22.0, "seconds": 2.0})


@pytest.mark.parametrize("slots", [1, 4])
def test_a_peer_that_gives_too_few_tokens_has_no_figure(slots: int) -> None:
    measure = child._single if slots == 1 else child._many
    with pytest.raises(RuntimeError, match="tokens came, not"):
        measure(_Clockwork(loses=1), Work("", "135M", "same", 50, 11, slots), seed=0)


def _load(load: object) -> object:
    raise NotImplementedError


def _peer(*installs: tuple[str, ...]) -> Any:
    return base.Peer("none", "no-such-package", "1", installs, _load, {})


def test_a_peer_that_cannot_be_installed_is_told_of_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path))
    with pytest.raises(environment.SetupError, match=r"^none cannot be installed: ERROR: .*$"):
        environment.prepare(_peer(("--no-index", str(tmp_path / "absent.whl"))))
    assert [path.name for path in (tmp_path / "peers").iterdir()] == ["no-such-package-1.log"]


def test_an_environment_is_made_once_and_again_when_its_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path))
    made: list[Path] = []

    def install(_: object, folder: Path, __: Path) -> dict[str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder)
        return {"no-such-package": "1.0"}

    monkeypatch.setattr(environment, "_install", install)
    assert environment.prepare(_peer(("a",))).version == "1.0"
    assert environment.prepare(_peer(("a",))).version == "1.0"
    assert len(made) == 1
    environment.prepare(_peer(("b",)))
    assert len(made) == 2


def test_peers_modules_need_nothing_but_the_standard_library_to_be_imported() -> None:
    # As inside a peer's own environment, where neither torch nor numpy nor corral may be.
    code = "import sys, peers.catalog, peers.child; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=_BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("code", "said"), [("raise ValueError('no')", "ValueError: no"), ("", "no output")])
def test_a_run_that_gives_nothing_is_told_of_with_its_error_and_status(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_START", code or "import os; os.abort()")
    here = environment.Environment(_peer(), Path(sys.executable), {})
    with pytest.raises(run.RunError, match=rf"^none, decode: {said} \(exit {1 if code else -6}\)$"):
        run.run(here, tmp_path, Work("decode", "135M", "same", 8, 2), (0,), seed=0)


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    code = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "60"])
pathlib.Path({str(note)!r}).write_text(str(child.pid))
time.sleep(60)
"""
    monkeypatch.setattr(run, "_START", code)
    monkeypatch.setattr(run, "_SECONDS", 3)
    here = environment.Environment(_peer(), Path(sys.executable), {})
    with pytest.raises(run.RunError, match="over 3 s"):
        run.run(here, tmp_path, Work("decode", "135M", "same", 8, 2), (0,), seed=0)
    status = Path(f"/proc/{note.read_text()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_one_processor_of_each_physical_core_is_used() -> None:
    cores = machine.physical_cores()
    assert cores
    assert len(set(cores)) == len(cores)


def test_unknown_rows_and_peers_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ArgumentTypeError, match="fast: choose from decode, prefill"):
        cpu_peers.names_of({"decode": 1, "prefill": 2})("decode,fast")


def test_a_random_vocabulary_is_complete_and_every_token_is_reached_by_one_merge() -> None:
    tokens, merges = random_gguf.vocabulary(128_256)
    assert len(tokens) == len(set(tokens)) == 128_256
    assert len(tokens) == 256 + len(merges) + 256
    known = set(tokens[:256])
    for merge in merges:
        first, second = merge.split(" ")
        assert first in known
        assert second in known
        known.add(first + second)


def test_a_file_of_random_weights_is_read_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(
        random_gguf._shape("llama-3.1-8b"),
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    monkeypatch.setattr(random_gguf, "_shape", lambda _: small)
    path = tmp_path / "random.gguf"
    random_gguf.write_random(path, "small")
    checkpoint = open_checkpoint(path)
    assert checkpoint.tokenizer().encode("abc")
    model = load_model(checkpoint, torch.float32, torch.device("cpu"))
    weights = dict(model.named_parameters())
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert weights[name].shape[1] == 256
        assert 0.3 < float(weights[name].std() * 256**0.5) < 3


def test_every_sample_is_kept_in_what_is_written_as_json() -> None:
    rounds = {("same", "corral"): _rounds(3.0, None), ("same", "a"): _rounds(1.0, 2.0)}
    (row,) = json.loads(json.dumps(summary(rounds, [_DECODE], ["corral", "a"])))
    assert row["samples"] == {"corral": [3.0, None], "a": [1.0, 2.0]}


def test_the_share_of_the_processors_that_others_take_is_a_share() -> None:
    assert 0.0 <= machine.busy_share(0.05) <= 1.0


def test_a_decoding_step_reads_all_weights_but_an_embedding_that_is_not_the_head(tmp_path: Path) -> None:
    models = import_module("peers.models")
    for tied in (True, False):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_tensor("token_embd.weight", np.zeros((10, 4), np.float32))
        writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 4), np.float32))
        if not tied:
            writer.add_tensor("output.weight", np.zeros((10, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert models.weights_read(tmp_path / "model.gguf") == 160 + 64


def test_the_bandwidth_that_decoding_uses_is_told_beside_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_peers.models, "weights_read", lambda _: 4_000_000_000)
    there = machine.Machine("", "", (0,), 50e9)
    results = {("8b", "corral"): _rounds(10.0, None), ("8b", "a"): _rounds(5.0)}
    results |= {("same", "a"): _rounds(1.0), ("64", "b"): [{"output_tok_s": 1.0}]}
    said = cpu_peers.bandwidth_used(results, tmp_path, there)
    assert said.endswith("4.00 GB per token: corral 40.0 GB/s (80%), a 20.0 GB/s (40%)")
