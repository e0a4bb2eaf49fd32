"""`corral quantize` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corral.checkpoints.source import open_checkpoint
from corral.cli.main import run
from corral.quant import Affine, Codebook
from tests.evals.tables import write_parquet
from tests.quantizer.models import TEXT, text_of, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model")


def calibration(source: Path) -> list[str]:
    return ["--calibration", str(text_of(source)), "--samples", "16", "--length", "64"]


def test_a_table_says_what_it_costs(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    out = tmp_path / "out"
    arguments = ["quantize", str(source), str(out), "--method", "gptq", "--group-size", "32"]
    assert run([*arguments, *calibration(source)]) == 0
    shown = capsys.readouterr()
    assert "4-bit integers with a scale to each group of 32" in shown.out
    assert "perplexity before" in shown.out
    assert "rounded to nearest" in shown.out
    assert "16 windows of 64 tokens of text.txt" in shown.out
    assert shown.err == ""
    weights = dict(open_checkpoint(out).weights())
    assert isinstance(weights["model.layers.0.mlp.up_proj.weight"], Affine)


def test_json_is_the_report_of_the_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--method", "rtn", "--format", "bitsandbytes", "--group-size", "32", "--ignore", "o_proj"]
    arguments += ["--ignore", "down_proj", "--eval-text", str(text_of(source)), "--length", "64", "--json"]
    assert run(["quantize", str(source), str(out), *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((out / "quantization_report.json").read_text())
    assert shown["recipe"]["ignore"] == ["o_proj", "down_proj"]
    assert shown["texts"]["evaluation"] == "text.txt"
    assert shown["perplexity"]["tokens"] == 16 * 63
    assert {type(w) for n, w in open_checkpoint(out).weights() if n.endswith("up_proj.weight")} == {Codebook}
    assert str(tmp_path) not in json.dumps(shown)


def test_dialogs_and_tables_are_calibrated_on(source: Path, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": TEXT[:300]}]}] * 20
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_parquet(tmp_path / "rows.parquet", [{"text": TEXT[:2000]}] * 3)
    for name in ("rows.jsonl", "rows.parquet"):
        arguments = ["--calibration", str(tmp_path / name), "--samples", "8", "--length", "64"]
        arguments += ["--method", "awq", "--group-size", "32"]
        assert run(["quantize", str(source), str(tmp_path / name[5:]), *arguments]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "hqq"], "method is 'hqq'; it must be one of rtn, awq, gptq, fp8"),
        (["--bits", "5"], "bits is 5; it must be one of 2, 3, 4, 8 in the format gptq"),
        (["--group-size", "48"], "group_size is 48, which does not divide the 64 columns of model.layers.0"),
        (["--group-size", "32", "--samples", "100000"], "the calibration text is too short: it gives"),
        (["--group-size", "32", "--samples", "0"], "samples is 0; it must be at least 1"),
        (
            ["--group-size", "32", "--length", "4096"],
            "length is 4,096, but the model's context is 128",
        ),
        (["--group-size", "32", "--eval-samples", "-1"], "evaluation_samples is -1; it must be at least 0"),
        (["--group-size", "32", "--eval-text", "./none.txt"], "none.txt cannot be read"),
        (["--group-size", "32", "--dtype", "int4"], "dtype is 'int4'"),
        (["--group-size", "32", "--threads", "0"], "threads is 0; it must be at least 1 and at most 1024"),
        (["--group-size", "32", "--threads", "99999999"], "threads is 99999999; it must be at least 1"),
        (["--ignore", "("], "ignore is '(', which is no regular expression"),
        (["--ignore", "proj"], "ignore leaves nothing to quantize"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    source: Path, tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = ["--calibration", str(text_of(source))]
    text += [] if "--samples" in arguments else ["--samples", "16"]
    text += [] if "--length" in arguments else ["--length", "64"]
    assert run(["quantize", str(source), str(out), *text, *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.startswith("corral: ")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rounding_takes_no_text_and_no_room_for_it(source: Path, tmp_path: Path) -> None:
    """The windows of text that nobody asks for are longer than this model's context."""
    arguments = ["--method", "rtn", "--group-size", "32"]
    assert run(["quantize", str(source), str(tmp_path / "out"), *arguments]) == 0


def test_a_folder_with_something_in_it_is_left_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["quantize", str(source), str(tmp_path), "--method", "rtn", "--group-size", "32"]) == 1
    assert "is not an empty folder; choose another" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
