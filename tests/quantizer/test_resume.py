"""A quantization that is cut off goes on where it was, and gives the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from corral.errors import CheckpointError
from corral.quantizer.errors import QuantizeError
from corral.quantizer.recipe import Recipe
from corral.quantizer.run import QuantizeOptions
from corral.quantizer.work import Work
from tests.quantizer.models import run, text_of, write_source

RECIPES = {
    "gptq": Recipe.of("gptq", group_size=32),
    "awq": Recipe.of("awq", group_size=32),
    "fp8": Recipe.of("fp8", preset="static"),
    "gguf": Recipe.of("gptq", format="gguf"),
}
ONE_THREAD = QuantizeOptions(threads=1)


class Cut(Exception):
    """What a progress bar throws, in the place of a power cut."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model")


def content(out: Path) -> dict[str, bytes]:
    files = [out] if out.is_file() else sorted(out.iterdir())
    return {file.name: file.read_bytes() for file in files}


def cut_after(matrices: int, calls: list[int]) -> object:
    def progress(what: str, done: int, _: int) -> None:
        calls.append(done)
        if what == "matrices" and done >= matrices:
            raise Cut

    return progress


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("text", [True, False])
def test_the_bytes_are_the_same_after_a_cut(source: Path, tmp_path: Path, name: str, text: bool) -> None:
    recipe = RECIPES[name]
    out = tmp_path / "cut" / ("out.gguf" if name == "gguf" else "out")
    whole = tmp_path / "whole" / out.name
    run(source, whole, recipe, text=text, options=ONE_THREAD)
    for matrices in (5, 16):  # in the first layer, and in the last of three
        with pytest.raises(Cut):
            run(source, out, recipe, text=text, options=ONE_THREAD, progress=cut_after(matrices, []))
        assert not out.exists()
    calls: list[int] = []
    run(source, out, recipe, text=text, options=ONE_THREAD, progress=cut_after(100, calls))
    assert 7 in calls
    assert 1 not in calls, "finished layers are not made again"
    assert content(out) == content(whole)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_other_settings_are_refused_by_name_unless_it_starts_anew(source: Path, tmp_path: Path) -> None:
    recipe, out = RECIPES["gptq"], tmp_path / "out"
    with pytest.raises(Cut):
        run(source, out, recipe, progress=cut_after(10, []))
    with pytest.raises(
        QuantizeError, match=r"was begun with another bits and symmetric; go on with the same"
    ):
        run(source, out, replace(recipe, bits=3, symmetric=False))
    with pytest.raises(QuantizeError, match="was begun with another dtype"):
        run(source, out, recipe, options=QuantizeOptions(dtype="float16"))
    with pytest.raises(QuantizeError, match="was begun with another text"):
        run(source, out, recipe, text=False)
    run(source, out, replace(recipe, group_size=16), options=QuantizeOptions(restart=True))
    run(source, tmp_path / "whole" / "out", replace(recipe, group_size=16))
    assert content(out) == content(tmp_path / "whole" / "out")


def test_two_do_not_work_on_the_same(tmp_path: Path) -> None:
    with Work(tmp_path / "out", {"a": 1}):
        with pytest.raises(QuantizeError, match="is being made by another process; wait for it"):
            Work(tmp_path / "out", {"a": 1})
        with Work(tmp_path / "other", {"a": 1}):
            pass
    with Work(tmp_path / "out", {"a": 1}) as work:
        work.remove()


def test_a_finished_layer_that_is_damaged_is_named(source: Path, tmp_path: Path) -> None:
    recipe, out = RECIPES["gptq"], tmp_path / "out"
    with pytest.raises(Cut):
        run(source, out, recipe, progress=cut_after(10, []))
    file = tmp_path / ".out.quantizing" / "layer-00000.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        QuantizeError, match=r"layer-00000\.safetensors is damaged; delete it, and its layer is"
    ):
        run(source, out, recipe)
    file.unlink()
    run(source, out, recipe)


@pytest.mark.parametrize("content", ["[1]", "{", "{}"])
def test_settings_that_are_damaged_are_not_gone_on_with(source: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / ".out.quantizing").mkdir()
    (tmp_path / ".out.quantizing" / "settings.json").write_text(content)
    with pytest.raises(QuantizeError, match=r"was begun with another .* start anew with --restart"):
        run(source, tmp_path / "out", RECIPES["gptq"])
    run(source, tmp_path / "out", RECIPES["gptq"], options=QuantizeOptions(restart=True))


def test_samples_that_are_damaged_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run(source, tmp_path / "out", RECIPES["gptq"], text=False, progress=cut_after(1, []))
    file = tmp_path / ".out.quantizing" / "tokens.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(
        QuantizeError, match=r"tokens\.safetensors is damaged; delete it, and the samples are"
    ):
        run(source, tmp_path / "out", RECIPES["gptq"], text=False)


def test_a_disk_that_is_full_keeps_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = RECIPES["gptq"], tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("corral.quantizer.work.save_file", full)
        with pytest.raises(CheckpointError, match="could not be written: No space left on device; what is"):
            run(source, out, recipe)
    assert not out.exists()
    run(source, out, recipe)
    run(source, tmp_path / "whole" / "out", recipe)
    assert content(out) == content(tmp_path / "whole" / "out")


def test_a_process_that_is_killed_can_be_run_again(source: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "cut" / "out", tmp_path / "cut" / ".out.quantizing"
    arguments = ["--method", "gptq", "--group-size", "32", "--calibration", str(text_of(source))]
    arguments += ["--samples", "24", "--length", "64", "--threads", "1"]

    def command(to: Path) -> list[str]:
        return [sys.executable, "-m", "corral", "quantize", str(source), str(to), *arguments]

    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command(out), env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (folder / "layer-00000.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was still at work"
    for to in (out, tmp_path / "whole" / "out"):
        subprocess.run(command(to), env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert content(out) == content(tmp_path / "whole" / "out")
    assert [file.name for file in out.parent.iterdir()] == ["out"]
