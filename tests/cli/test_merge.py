"""`corral merge` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.cli.main import run
from corral.quant import Affine
from corral.tune.parameters.folder import load_adapters, save_adapter
from tests.checkpoints.writers import write_chat_model
from tests.quantizer.models import text_of, write_source
from tests.random_models import SMALL_CHAT, random_model
from tests.tune.parameters.training import batch_of, our_logits, peft_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_chat_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return peft_folder(random_model(SMALL_CHAT), tmp_path / "adapter", target_modules="all-linear")


def test_a_merged_model_answers_as_the_model_with_its_adapter(
    model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["merge", str(model), str(adapter), "--out", str(out), "--dtype", "float32"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(out)
    assert shown.err == ""
    network, merged = random_model(SMALL_CHAT), load_model(open_checkpoint(out))
    batch = batch_of(network)
    with torch.no_grad():
        expected = our_logits(network, load_adapters(adapter, network), batch)
        torch.testing.assert_close(our_logits(merged, None, batch), expected, atol=3e-5, rtol=0)
    ask = ["generate", "hello", "--max-tokens", "8", "--dtype", "float32", "--kernels", "torch"]
    answers = []
    for flags in (["--model", str(out)], ["--model", str(model), "--adapter", str(adapter)]):
        assert run([*ask, *flags]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_an_adapter_over_quantized_weights_asks_for_its_base(
    model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = random_model(SMALL_CHAT)
    save_adapter(tmp_path / "qlora", load_adapters(adapter, network), "small", "nf4")
    command = ["merge", str(model), str(tmp_path / "qlora"), "--out", str(tmp_path / "out")]
    assert run(command) == 1
    shown = capsys.readouterr()
    assert "was trained over nf4 weights, so say which base to merge onto: 'dequantized'" in shown.err
    assert "'original'" in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run([*command, "--base", "dequantized"]) == 0


def test_several_adapters_come_with_a_weight_each(
    model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["merge", str(model), str(adapter), str(adapter), "--dtype", "float32"]
    half = ["--weight", "0.5", "--weight", "0.5"]
    assert run([*command, *half, "--out", str(tmp_path / "halves")]) == 0
    assert run(["merge", str(model), str(adapter), "--dtype", "float32", "--out", str(tmp_path / "one")]) == 0
    one = dict(open_checkpoint(tmp_path / "one").tensors())
    for name, tensor in open_checkpoint(tmp_path / "halves").tensors():
        torch.testing.assert_close(tensor, one[name])
    capsys.readouterr()
    assert run([*command, "--weight", "0.5", "--out", str(tmp_path / "bad")]) == 1
    assert "weights has 1 numbers for 2 adapters" in capsys.readouterr().err


def test_the_result_is_quantized_with_the_same_options_as_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_source(tmp_path / "model"), tmp_path / "out"
    network = load_model(open_checkpoint(source), torch.float32)
    adapter = peft_folder(network, tmp_path / "adapter", target_modules="all-linear")
    command = [
        "merge",
        str(source),
        str(adapter),
        "--out",
        str(out),
        "--quantize",
        "awq",
        "--group-size",
        "32",
    ]
    text = ["--calibration", str(text_of(source)), "--samples", "8", "--length", "64"]
    assert run([*command, *text]) == 0
    assert isinstance(dict(open_checkpoint(out).weights())["model.layers.0.mlp.up_proj.weight"], Affine)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["adapter", "model", "out", "text.txt"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--bits", "8"], 1, "--bits goes with --quantize, which is not given"),
        (["--samples", "4"], 1, "--samples goes with --quantize, which is not given"),
        (["--quantize", "hqq"], 1, "method is 'hqq'; it must be one of rtn, awq, gptq, fp8"),
        (["--base", "new"], 1, "base is 'new'; it must be original, dequantized, or one of"),
        (["--dtype", "int4"], 1, "dtype is 'int4'"),
        (["--weight", "much"], 2, "--weight"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    model: Path,
    adapter: Path,
    tmp_path: Path,
    arguments: list[str],
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["merge", str(model), str(adapter), "--out", str(tmp_path / "out")]
    assert run([*command, *arguments]) == status
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_a_folder_that_is_no_adapter_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", str(model), str(model), "--out", str(tmp_path / "out")]) == 1
    assert "adapter_config.json does not exist" in capsys.readouterr().err
