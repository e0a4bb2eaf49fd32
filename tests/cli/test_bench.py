"""`corral bench` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from corral.cli.main import run
from tests.checkpoints.writers import write_chat_model
from tests.kernels.networks import needs_native

KEYS = {
    "prefill_tok_s",
    "decode_tok_s",
    "output_tok_s",
    "ttft_ms",
    "itl_ms",
    "peak_rss_bytes",
    "bandwidth_gb_s",
    "bandwidth_share",
    "model",
    "dtype",
    "device",
    "weights",
    "kernels",
    "threads",
    "settings",
    "versions",
}
FEW = ["--prompt-tokens", "12", "--new-tokens", "4", "--concurrency", "2", "--requests", "3"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What `--threads` changes is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_random_weights_need_nothing_but_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path))
    arguments = ["bench", "smollm2-135m", "--random-weights", *FEW, "--json", "--threads", "1"]
    assert run([*arguments, "--dtype", "float32", "--kv-cache-dtype", "int8"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= KEYS
    assert result["model"] == "smollm2-135m"
    assert (result["dtype"], result["device"], result["threads"]) == ("float32", "cpu", 1)
    assert result["weights"] == "float32"
    for name in ("ttft_ms", "itl_ms"):
        assert 0 < result[name]["p50"] <= result[name]["p95"] <= result[name]["p99"]
    for name in ("prefill_tok_s", "decode_tok_s", "output_tok_s", "bandwidth_share"):
        assert result[name] > 0
    assert result["peak_rss_bytes"] > 4 * 134_515_008  # the weights
    # One step reads the weights, and 14 tokens of 30 layers x 3 heads x 2 x (64 + 2) bytes on average.
    step = 4 * 134_515_008 + 14 * 30 * 3 * 2 * 66
    assert result["bandwidth_gb_s"] == pytest.approx(step * result["decode_tok_s"] / 1e9)
    settings = result["settings"]
    assert (settings["concurrency"], settings["requests"], settings["kv_cache_dtype"]) == (2, 3, "int8")
    assert list(tmp_path.iterdir()) == []


@needs_native
def test_quantized_random_weights_are_made_as_they_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path))
    arguments = ["bench", "smollm2-135m", "--random-weights", "--weights", "q4_0", *FEW, "--threads", "2"]
    assert run([*arguments, "--json", "--kernels", "native", "--kv-cache-dtype", "int8"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["weights"], result["threads"]) == ("u4 + u8", 2)
    assert result["kernels"].startswith("native ")
    # 4.5 bits for the weights of the layers, 8.5 for the head, 32 for the norms; the cache as above.
    layers, head, norms = 106_168_320, 28_311_552, 61 * 576
    step = layers * 4.5 / 8 + head * 8.5 / 8 + norms * 4 + 14 * 30 * 3 * 2 * 66
    assert result["bandwidth_gb_s"] == pytest.approx(step * result["decode_tok_s"] / 1e9, rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_real_model_gives_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chat_model(tmp_path)
    assert run(["bench", str(tmp_path), *FEW, "--speculate", "prompt-lookup"]) == 0
    shown = capsys.readouterr().out
    for what in ("prefill", "decode", "output", "time to first token", "peak memory", "bandwidth"):
        assert what in shown


REFUSED: dict[str, tuple[list[str], str]] = {
    "a name that is no preset": (["my-model", "--random-weights"], "'my-model' is no known model"),
    "a model that no memory holds": (["llama-3.1-405b-instruct", "--random-weights"], "takes"),
    "a sequence beyond the context": (
        ["smollm2-135m", "--random-weights", "--prompt-tokens", "8192"],
        "prompt_tokens and new_tokens come to 8320, but the model's context is 8192",
    ),
    "one token": (["smollm2-135m", "--random-weights", "--new-tokens", "1"], "new_tokens is 1"),
    "a smaller model": (["smollm2-135m", "--random-weights", "--speculate", "x"], "leave one of the two out"),
    "an unknown form of weights": (
        ["smollm2-135m", "--random-weights", "--weights", "q3"],
        "weights is 'q3'",
    ),
    "a form of weights that are not random": (["--weights", "q4_0"], "goes with random weights"),
    "a form of weights for other kernels": (
        ["smollm2-135m", "--random-weights", "--weights", "q4_0", "--kernels", "torch"],
        "which only the native kernels of a CPU can read",
    ),
    "no threads": (["smollm2-135m", "--random-weights", "--threads", "0"], "threads is 0"),
    "a size": (["smollm2-135m", "--kv-cache-memory", "much"], "write it like 4GiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = REFUSED[name]
    assert run(["bench", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("corral: ")
    assert said in error
    assert error.count("\n") == 1
