"""`corral perplexity` and `corral compare` as a user runs them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from rich.console import Console

from corral.cli.count_progress import CountReport
from corral.cli.main import run
from corral.model.presets import DEFAULT_MODEL
from tests.evals.models import TEXT, write_model
from tests.evals.tables import write_dataset, write_parquet
from tests.kernels.networks import needs_native

VERBS = ("perplexity", "compare")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What `--threads` changes is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model, its weights a little off."""
    return str(write_model(tmp_path_factory.mktemp("near"), noise=0.1))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "a.txt")


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text that models know: Python's own documentation."""
    file = tmp_path_factory.mktemp("text") / "topics.txt"
    file.write_text(topics["class"], encoding="utf-8")
    return str(file)


def as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert "tokens" not in shown.err  # bars are for terminals
    facts: dict[str, Any] = json.loads(shown.out)
    return facts


@pytest.mark.usefixtures("smollm2_path")
def test_a_real_model_predicts_english(documentation: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["perplexity", "--text", documentation, "--tokens", "400", "--context", "200"]
    facts = as_json(arguments, capsys)
    assert (facts["model"], facts["tokens"], facts["windows"]) == (DEFAULT_MODEL, 398, 2)
    perplexity = facts["perplexity"]["mean"]
    assert 5 < perplexity < 100
    assert math.log(perplexity) == pytest.approx(facts["nll_per_token"]["mean"])
    assert 0.5 < facts["bits_per_byte"] < 2
    assert facts["perplexity"]["standard_error"] > 0
    # Chance would be the size of the vocabulary.
    assert facts["bits_per_byte"] * facts["bytes"] / 398 < math.log2(49152) / 2


@needs_native
@pytest.mark.usefixtures("smollm2_path")
def test_a_real_model_beside_itself_and_beside_its_exact_activations(
    documentation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", DEFAULT_MODEL, DEFAULT_MODEL, "--text", documentation, "--tokens", "300"]
    same = as_json(arguments, capsys)
    assert same["kl_divergence"] == {
        **dict.fromkeys(("mean", "p50", "p90", "p99", "p99.9", "max"), 0.0),
        "standard_error": None,
    }
    assert same["top1_agreement"]["mean"] == same["perplexity_ratio"]["mean"] == 1
    assert same["tokens"] == 299
    rounded = as_json([*arguments, "--reference-exact-activations"], capsys)
    assert rounded["reference"]["exact_activations"]
    assert not rounded["candidate"]["exact_activations"]
    assert rounded["candidate"]["perplexity"] == same["candidate"]["perplexity"]
    assert 1e-4 < rounded["kl_divergence"]["mean"] < 0.02
    assert 0.9 < rounded["top1_agreement"]["mean"] < 1
    assert rounded["perplexity_ratio"]["mean"] == pytest.approx(1, abs=0.05)


def test_people_see_a_table(model: str, near: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["perplexity", model, "--text", text, "--threads", "1", "--dtype", "float32"]) == 0
    shown = capsys.readouterr().out
    for what in ("perplexity", "loss", "bits per byte", "tok/s", "1 windows", "context 1,024", "float32"):
        assert what in " ".join(shown.split()), what
    assert run(["compare", model, near, "--text", text, "--context", "50", "--stride", "25"]) == 0
    shown = capsys.readouterr().out
    for what in ("reference", "model", "KL divergence", "99.9%", "top-1 agreement", "±", "stride 25"):
        assert what in " ".join(shown.split()), what


def test_options_for_the_reference_alone_are_its_own(
    model: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["compare", model, model, "--text", text, "--dtype", "bfloat16", "--kernels", "torch"]
    alone = as_json([*both, "--reference-dtype", "float32", "--reference-kv-cache-dtype", "int8"], capsys)
    assert [alone[side]["dtype"] for side in ("reference", "candidate")] == ["float32", "bfloat16"]
    assert [alone[side]["kv_cache_dtype"] for side in ("reference", "candidate")] == ["int8", "bfloat16"]
    assert alone["kl_divergence"]["mean"] > 0
    assert as_json(both, capsys)["kl_divergence"]["max"] == 0


def test_standard_input_lines_of_json_and_tables_are_read(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["perplexity", model, "--dtype", "float32", "--kernels", "torch", "--text"]
    row = json.dumps({"text": TEXT})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    twice = as_json([*arguments, str(tmp_path / "rows.jsonl")], capsys)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    once = as_json([*arguments, "-"], capsys)
    assert (twice["tokens"], twice["bytes"]) == (2 * once["tokens"], 2 * once["bytes"])
    assert twice["nll_per_token"]["mean"] == pytest.approx(once["nll_per_token"]["mean"], rel=1e-6)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(row.encode())))
    assert as_json([*arguments, "-", "--jsonl"], capsys)["tokens"] == once["tokens"]
    for table in (
        write_parquet(tmp_path / "rows.parquet", [{"text": TEXT}] * 2),
        write_dataset(tmp_path / "saved", [{"text": TEXT}], [{"text": TEXT}]),
    ):
        found = as_json([*arguments, str(table)], capsys)
        assert found["nll_per_token"] == twice["nll_per_token"]


REFUSED: dict[str, tuple[bytes, list[str], str]] = {
    "an empty text": (b"", [], "a.txt holds no text"),
    "one token": (b"!", [], "the text has 1 token; two are the least"),
    "a text that is not UTF-8": (b"abc\xff", [], "a.txt is not UTF-8 text at byte 3"),
    "a context of one token": (b"hello", ["--context", "1"], "context is 1; it must be at least 2"),
    "no stride": (b"hello", ["--stride", "0"], "stride is 0; it must be at least 1"),
    "a stride over tokens": (b"hello", ["--context", "8", "--stride", "9"], "stride is 9, but context is 8"),
    "a context that the model has not": (
        b"hello",
        ["--context", "4096"],
        "has one of 2,048 tokens; ask for less",
    ),
    "a text shorter than the overlap": (b"hello world", ["--stride", "8"], "no text is long enough"),
    "no such quantization": (b"hello", ["--quantize", "int3"], "quantize is 'int3'; it must be one of int8"),
    "a limit of one token": (b"hello", ["--tokens", "1"], "tokens is 1; it must be at least 2"),
    "a file that is not there": (b"hello", ["--text", "./nowhere.txt"], "nowhere.txt cannot be read"),
    "a folder": (b"hello", ["--text", "."], ". is a folder; name a file of text"),
    "rows that are none": (b"hello", ["--jsonl"], "a.txt line 1 is not valid JSON"),
    "an unknown dtype": (b"hello", ["--dtype", "int3"], "dtype is 'int3'"),
    "unknown kernels": (b"hello", ["--kernels", "fast"], "kernels is 'fast'"),
    "a cache of an unknown type": (b"hello", ["--kv-cache-dtype", "fp8"], "kv_cache_dtype is 'fp8'"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_for(
    name: str, verb: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, flags, said = REFUSED[name]
    (tmp_path / "a.txt").write_bytes(content)
    models = [model] * (2 if verb == "compare" else 1)
    assert run([verb, *models, "--text", str(tmp_path / "a.txt"), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("corral: ")
    assert said in error
    assert error.count("\n") == 1


def test_models_of_vocabularies_that_differ_are_refused_in_one_sentence(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(write_model(tmp_path / "other", with_bos=True))
    assert run(["compare", model, other, "--text", text]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "have different vocabularies: the first scores 400 tokens and the second 500" in error


@pytest.mark.parametrize(
    "arguments", [["perplexity"], ["compare", "x", "--text", "a"], ["compare", "x", "y"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_bar_moves_on_a_terminal_and_follows_that_of_a_download() -> None:
    shown = io.StringIO()
    with CountReport(Console(file=shown, force_terminal=True, width=80)) as report:
        report.progress("model.safetensors", 5, 10)
        report.count("tokens", 1000, 4000)
        report.count("tokens", 4000, 4000)
    assert "model.safetensors" in shown.getvalue()
    assert "1,000/4,000" in shown.getvalue() or "4,000/4,000" in shown.getvalue()
    silent = io.StringIO()
    with CountReport(Console(file=silent)) as report:
        report.count("tokens", 1, 2)
    assert silent.getvalue() == ""
