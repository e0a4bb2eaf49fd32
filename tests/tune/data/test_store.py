"""Items on disk: made once, whole or not at all, mixed and held out by their content."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import corral.tune.data.making as making
from corral.errors import CheckpointError
from corral.text.rendered import Renderer
from corral.tune.config import DataConfig
from corral.tune.data.mixture import held_out, repeated
from corral.tune.data.prepare import Prepared, prepare
from corral.tune.data.store import ItemStore, ItemWriter, StoredItems
from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item, Pair, Rated
from tests.tune.data.conftest import PromptFormat
from tests.tune.data.items import as_example, text_of

Make = Callable[..., Prepared]

ROWS = [{"text": f"Row {i}."} for i in range(20)]


def said(prepared: Prepared, chatml: PromptFormat, part: str = "train") -> list[str]:
    items = getattr(prepared, part)
    return [text_of(as_example(item), chatml.tokenizer).removesuffix("<|endoftext|>") for item in items]


def folders(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.iterdir() if file.is_dir())


def tokens(*ids: int) -> Any:
    return np.asarray(ids, dtype=np.int32)


def example(*ids: int) -> Example:
    return Example(tokens(*ids), np.arange(len(ids)) > 0)


@pytest.mark.parametrize(
    "items",
    [
        [example(1), example(2, 3), example(4, 5, 6)],
        [Pair(example(1, 2), example(1, 3, 4)), Pair(example(5, 6), example(5, 7))],
        [Rated(tokens(1, 2), tokens(3), True), Rated(tokens(), tokens(4, 5), False)],
    ],
)
def test_items_come_back_as_they_were(tmp_path: Path, items: list[Item]) -> None:
    with ItemWriter(tmp_path) as out:
        for item in items:
            out.add(item, 0)
        out.finish({})
    stored = StoredItems(tmp_path)
    store = ItemStore(stored, np.arange(len(items)))
    assert store.lengths.tolist() == [len(item) for item in items]
    for item, back in zip(items, store, strict=True):
        assert type(item) is type(back)
        for name, value in vars(item).items():
            other = getattr(back, name)
            if isinstance(value, Example):
                assert np.array_equal(value.tokens, other.tokens)
                assert np.array_equal(value.trained, other.trained)
            else:
                assert np.array_equal(value, other)
    trained = [item.num_trained if isinstance(item, Example) else 0 for item in items]
    assert not isinstance(items[0], Example) or store.num_trained == sum(trained)


def test_a_part_of_a_store_is_a_store(made_of: Make) -> None:
    train = made_of(ROWS).train
    part = train[5:8]
    assert isinstance(part, ItemStore)
    assert part.lengths.tolist() == train.lengths[5:8].tolist()
    assert np.array_equal(as_example(part[0]).tokens, as_example(train[5]).tokens)
    assert np.array_equal(as_example(train[-1]).tokens, as_example(train[19]).tokens)
    with pytest.raises(IndexError):
        train[20]


def test_the_second_start_tokenizes_nothing(made_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made_of(ROWS)

    def fail(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(making.Maker, "make", fail)
    second = made_of(ROWS)
    assert second.report == first.report
    assert second.train.fingerprint == first.train.fingerprint
    made_of(ROWS, eval_fraction=0.2)  # what is held out is chosen from the same items
    with pytest.raises(AssertionError, match="tokenized again"):
        made_of(ROWS, train_on_eos="none")


@pytest.mark.parametrize(
    "change",
    [
        {"train_on": "all"},
        {"train_on_eos": "all"},
        {"max_length": 64},
        {"system": "x"},
        {"limit": 3},
        {"overlong": "drop"},
    ],
)
def test_other_settings_are_other_folders(made_of: Make, tmp_path: Path, change: dict[str, Any]) -> None:
    made_of(ROWS)
    made_of(ROWS, **change)
    assert len(folders(tmp_path / "cache")) == 2


def test_other_rows_objectives_and_prompt_formats_are_other_folders(
    made_of: Make,
    write_rows: Callable[..., str],
    prompt_format: Callable[[str], PromptFormat],
    tmp_path: Path,
) -> None:
    made_of(ROWS)
    made_of([*ROWS, ROWS[0]])
    made_of(ROWS, "pretrain")
    known, cache = prompt_format("llama-3.1"), tmp_path / "cache"
    meta = prompt_format("llama-3.1-meta").renderer
    renderers: list[Renderer | None] = [known.renderer, meta, None]
    for renderer in renderers:
        prepare(DataConfig(train=write_rows(ROWS)), "sft", known.tokenizer, renderer, 8192, cache)
    assert len(folders(cache)) == 6


def test_a_failure_leaves_nothing(made_of: Make, tmp_path: Path) -> None:
    with pytest.raises(TuneError):
        made_of([*ROWS, {"text": 5}])
    assert folders(tmp_path / "cache") == []
    assert len(made_of(ROWS).train) == 20


def test_a_full_disk_is_said_and_leaves_nothing(
    made_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ItemWriter, "finish", full)
    with pytest.raises(CheckpointError, match="could not be written: No space left on device"):
        made_of(ROWS)
    assert folders(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["tokens.bin", "trained.bin", "ends.npy", "content.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_folders_are_refused(made_of: Make, tmp_path: Path, name: str, damage: str) -> None:
    made_of(ROWS)
    file = next((tmp_path / "cache").glob(f"*/{name}"))
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TuneError, match=r"is damaged \(.*delete that folder, and it is made again"):
        made_of(ROWS)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tune.data.preparing", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_many(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"text": f"{i} fox " * 20}) + "\n" for i in range(count)))
    return path


def test_a_killed_process_leaves_nothing_half(tmp_path: Path) -> None:
    rows, cache = write_many(tmp_path / "rows.jsonl", 4000), tmp_path / "cache"
    victim = start(rows, cache)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in cache.glob(".*.partial/tokens.bin")):
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    (left,) = folders(cache)
    assert left.endswith(".partial")
    out, errors = start(rows, cache).communicate(timeout=60)
    assert out.split()[2] == "4000", errors
    assert folders(cache) == [left.split(".")[1]]


def test_two_processes_at_once_tokenize_once(tmp_path: Path) -> None:
    rows, cache, go = write_many(tmp_path / "rows.jsonl", 4000), tmp_path / "cache", tmp_path / "go"
    readies = [tmp_path / f"ready{i}" for i in range(2)]
    processes = [start(rows, cache, ready, go) for ready in readies]
    deadline = time.monotonic() + 60
    while not all(ready.exists() for ready in readies):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go.touch()
    said = [process.communicate(timeout=60) for process in processes]
    lines = [out.split() for out, _ in said]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted(int(told) > 0 for told, _, _ in lines) == [False, True]
    assert lines[0][1:] == lines[1][1:]
    assert len(folders(cache)) == 1


def test_leftovers_of_a_killed_process_go(made_of: Make, tmp_path: Path) -> None:
    prepared = made_of(ROWS)
    cache = tmp_path / "cache"
    (name,) = folders(cache)
    (cache / name).rename(cache / f".{name}.abc.partial")
    assert made_of(ROWS).report == prepared.report
    assert folders(cache) == [name]


def test_weights_repeat_and_draw_rows(
    write_rows: Callable[..., str], chatml: PromptFormat, tmp_path: Path
) -> None:
    sources = [
        {"path": write_rows(ROWS[:4], "a.jsonl"), "weight": 2.5},
        {"path": write_rows(ROWS[4:], "b.jsonl"), "weight": 0.25},
    ]
    config = DataConfig.model_validate({"train": sources})

    def mixed(seed: int) -> list[str]:
        made = prepare(config, "sft", chatml.tokenizer, None, 8192, tmp_path / "cache", seed=seed)
        assert made.report.train.items == len(made.train)
        return said(made, chatml)

    texts = mixed(0)
    counts = [texts.count(row["text"]) for row in ROWS]
    assert sorted(counts[:4]) == [2, 2, 3, 3]
    assert sorted(counts[4:]) == [0] * 12 + [1] * 4
    assert mixed(0) == texts
    assert len({tuple(mixed(seed)) for seed in range(5)}) > 1
    assert len(folders(tmp_path / "cache")) == 1


def test_rows_are_held_out_by_their_content(made_of: Make, chatml: PromptFormat) -> None:
    rows = [*ROWS, *ROWS[:10], *ROWS[5:8]]
    prepared = made_of(rows, eval_fraction=0.25)
    train, held = said(prepared, chatml), said(prepared, chatml, "eval")
    assert sorted(train + held) == sorted(row["text"] for row in rows)
    assert not set(train) & set(held)
    assert round(0.25 * len(rows)) <= len(held) <= round(0.25 * len(rows)) + 2
    other_order = made_of(rows[::-1], eval_fraction=0.25)
    assert set(said(other_order, chatml, "eval")) == set(held)
    assert prepared.report.eval is not None
    assert prepared.report.eval.items == len(held)
    assert prepared.report.duplicates == len(train) - len(set(train))
    assert prepared.report.shared == 0


def test_completions_of_one_prompt_are_held_out_together(made_of: Make, chatml: PromptFormat) -> None:
    rows = [{"prompt": f"Row {i % 10}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(40)]
    for kind in ("dpo", "kto"):
        prepared = made_of(rows, kind, eval_fraction=0.2)
        assert prepared.eval is not None
        sides = [set(), set()]  # type: list[set[str]]
        for side, items in zip(sides, (prepared.train, prepared.eval), strict=True):
            for item in items:
                document = item.chosen if isinstance(item, Pair) else item.example  # type: ignore[union-attr]
                side.add(text_of(document, chatml.tokenizer)[:5])
        assert not sides[0] & sides[1]
        assert len(sides[0] | sides[1]) == 10


def test_everything_held_out_is_refused(made_of: Make) -> None:
    with pytest.raises(TuneError, match="eval_fraction is 1, which leaves nothing to train on"):
        made_of(ROWS, eval_fraction=1.0)
    with pytest.raises(TuneError, match="the data has 1 different prompts or texts"):
        made_of(ROWS[:1] * 5, eval_fraction=0.1)


def test_rows_for_evaluation_that_are_trained_on_are_counted(
    made_of: Make, write_rows: Callable[..., str], chatml: PromptFormat
) -> None:
    prepared = made_of(ROWS, eval=write_rows([*ROWS[:3], {"text": "new"}], "eval.jsonl"))
    assert said(prepared, chatml, "eval") == ["Row 0.", "Row 1.", "Row 2.", "new"]
    assert len(prepared.train) == 20
    assert prepared.report.shared == 3
    assert "for evaluation, but trained on too: 3 rows" in prepared.report.lines()
    json.dumps(prepared.report.to_dict())


@given(count=st.integers(1, 200), weight=st.floats(0.01, 5, allow_nan=False), seed=st.integers(0, 2**32))
def test_a_weight_is_how_often_rows_come(count: int, weight: float, seed: int) -> None:
    places = repeated(count, weight, [seed, 0])
    times = np.bincount(places, minlength=count)
    assert len(times) == count
    assert abs(len(places) - weight * count) <= 1 or len(places) == 1
    assert times.max() - times.min() <= 1


@given(
    more=st.lists(st.integers(0, 24), max_size=75),
    share=st.floats(0.001, 0.2),
)
def test_at_least_the_share_is_held_out_and_groups_stay_whole(more: list[int], share: float) -> None:
    hashes = [*range(25), *more]
    prompts = np.asarray(hashes, dtype=np.uint64)
    apart = held_out(prompts, share)
    largest = np.unique(prompts, return_counts=True)[1].max()
    wanted = max(1, round(share * len(hashes)))
    assert wanted <= apart.sum() < wanted + largest
    assert not set(prompts[apart].tolist()) & set(prompts[~apart].tolist())
