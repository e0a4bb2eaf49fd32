"""Configurations from files and settings, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.tune.config_file import read_config, to_yaml
from corral.tune.errors import TuneError


def write(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def test_settings_go_before_the_file_and_later_ones_before_earlier_ones(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {train: a.jsonl}\noptimizer: {lr: 1e-4}\nepochs: 2\n")
    config = read_config(file, ["optimizer.lr=3e-4", "epochs=1", "epochs=3", "data.packing=false"], seed=7)
    assert (config.optimizer.lr, config.epochs, config.data.packing, config.seed) == (3e-4, 3, False, 7)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    settings = ["data.train=[a.jsonl, {path: b.parquet, weight: 2}]", "optimizer.betas=[0.9, 0.95]"]
    config = read_config(None, settings)
    assert read_config(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a", "data is missing; give it in the file or with --set data=..."),
        ("data: {train: a}\noptimiser: {lr: 1}", "optimiser is no setting; did you mean optimizer?"),
        ("data: {train: [{path: b, weigth: 2}]}", "data.train.0.weigth is no setting; did you mean weight?"),
        ("data: {train: a}\nbatch: {size: 2.5}", "batch.size is 2.5; it must be integer"),
        ("data: {train: a}\nbatch: {size: true}", "batch.size is true; it must be integer"),
        ("data: {train: a}\noptimizer: {lr: -1}", "optimizer.lr is -1; it must be greater than 0"),
        ("data: {train: a}\noptimizer: {lr: .nan}", "optimizer.lr is NaN; it must be a finite number"),
        ("data: {train: a}\noptimizer: {lr: '1'}", 'optimizer.lr is "1"; it must be number'),
        ("data: {train: [{path: b, weight: x}]}", 'data.train.0.weight is "x"; it must be number'),
        ("data: {train: a}\nschedule: {kind: cosin}", "it must be 'cosine', 'linear', 'constant' or 'wsd'"),
        ("data: {train: a, train: b}", "train stands twice; remove one"),
        ("a: &x 1\nb: *x", "aliases (*name) are not used in configurations"),
        ("- a", "must be a mapping of settings like `model: NAME`, not a list"),
        ("data: {train: a", "is not valid YAML"),
        ("data: {train: a}\nseed: 10000000000000000000000", "seed is"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TuneError) as caught:
        read_config(write(tmp_path, text))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer", "--set optimizer: write it as key=value, for instance optimizer.lr=1e-4"),
        ("=3", "--set =3: write it as key=value"),
        ("data.train.path=b", "train is a text in the file, without keys of its own"),
        ("optimizer.lr=[", "--set optimizer.lr=[: not valid YAML"),
    ],
)
def test_a_setting_that_cannot_be_taken_is_named(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(TuneError) as caught:
        read_config(write(tmp_path, "data: {train: a}"), [setting])
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: " + b"x" * 2**21])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(TuneError, match=r"run\.yaml"):
        read_config(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def test_what_yaml_takes_for_a_date_is_the_text_it_is(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "data: {train: a}\nmodel: 2024-01-01")).model == "2024-01-01"
