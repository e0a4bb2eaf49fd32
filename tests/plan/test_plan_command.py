"""`corral plan` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from corral.cli.plan import plan
from corral.errors import PlanError
from corral.model.presets import PRESETS

app = typer.Typer()
app.command()(plan)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


def refusal(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, PlanError), result.output
    return str(result.exception)


def test_a_known_model_is_planned_without_any_download() -> None:
    output = run("llama-3.1-8b-instruct", "--devices", "24GB").output
    assert "8,030,261,248 parameters on 1x24GB" in output
    assert "14.96 GiB" in output
    assert "16.06 GB" in output
    assert "Fits: 6.41 GiB of 22.56 GiB usable (24.00 GiB less 6% reserve) stay free." in output


def test_a_hub_name_of_a_known_model_is_the_known_model() -> None:
    short, full = (
        json.loads(run(name, "--json", "--devices", "1GB").output)
        for name in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct")
    )
    assert short["per_device"] == full["per_device"]


def test_a_folder_is_planned_from_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["llama-3.2-3b"].config.to_hf()))
    known, folder = (
        json.loads(run(name, "--json", "--devices", "8GB").output) for name in ("llama-3.2-3b", str(tmp_path))
    )
    assert known["per_device"] == folder["per_device"]


def test_json_is_pure_and_has_the_documented_keys() -> None:
    plain = json.loads(run("llama-3.1-8b", "--train", "lora", "--devices", "2x24GB", "--json").output)
    assert list(plain) == [
        "model",
        "request",
        "devices",
        "per_device",
        "total",
        "free",
        "fits",
        "limits",
        "suggestions",
    ]
    assert list(plain["per_device"]) == [
        "weights",
        "adapters",
        "gradients",
        "optimizer_states",
        "activations",
        "gathered_weights",
    ]
    assert all(isinstance(size, int) for size in plain["per_device"].values())


def test_what_does_not_fit_comes_with_advice() -> None:
    output = run("llama-3.1-70b", "--devices", "80GB").output
    assert "Does not fit: 59.11 GiB too much for 75.20 GiB usable" in output
    assert "Any one of these fits:" in output
    assert "--dtype int8" in output


def test_what_nothing_helps_says_so() -> None:
    output = run("llama-3.1-405b", "--devices", "1GB").output
    assert "No change of format, length, batch or number of devices that was tried is enough." in output


def test_a_default_context_is_no_longer_than_the_models() -> None:
    assert json.loads(run("llama-3-8b", "--json").output)["request"]["context"] == 8192
    assert json.loads(run("llama-3-8b", "--json", "--train", "lora").output)["request"]["seq"] == 2048


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seq", "3"), "--seq is for training; add --train full, lora or qlora"),
        (("--no-checkpointing",), "--checkpointing is for training"),
        (("--train", "full", "--context", "3"), "--context is for serving; leave it or --train out"),
        (("--train", "full", "--kv-dtype", "int8"), "--kv-dtype is for serving"),
        (("--train", "full", "--lora-rank", "4"), "--lora-rank is for --train lora or qlora"),
        (("--train", "sft"), "--train is 'sft'; use one of full, lora, qlora"),
        (("--train", "lora", "--lora-targets", "q_proj,wk"), "--lora-targets names wk"),
        (("--devices", "much"), "--devices is 'much'"),
        (("--context", "200000"), "--context is 200000, but the model sees at most 131072 tokens"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_words(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal("llama-3.1-8b", *arguments)


def test_planning_imports_neither_torch_nor_the_hub() -> None:
    check = (
        "import sys\nfrom corral.cli.plan import plan\nplan('llama-3.1-8b', devices='24GB')\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, timeout=60)


def test_the_json_names_the_formats_that_were_left_to_the_model() -> None:
    request = json.loads(run("llama-3-8b", "--json").output)["request"]
    assert (request["dtype"], request["kv_dtype"]) == ("bfloat16", "bfloat16")
    assert json.loads(run("llama-3-8b", "--json", "--train", "qlora").output)["request"]["dtype"] == "nf4"
