"""Names: local paths, short names, and names on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.checkpoints.names import HubName, parse_hub_name
from corral.checkpoints.resolve import resolve, resolve_config
from corral.errors import CheckpointError, ResolveError
from corral.model.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("org/name", HubName("org/name")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("org/name:q4/x.gguf", HubName("org/name", None, "q4/x.gguf")),
        ("org/name@dev:x.gguf", HubName("org/name", "dev", "x.gguf")),
        ("META-LLAMA/llama-3.1-8b", HubName("meta-llama/Llama-3.1-8B")),
        (
            "Llama-3.1-8B-Instruct@main",
            HubName("meta-llama/Llama-3.1-8B-Instruct", "main", None, "llama-3.1-8b-instruct"),
        ),
    ],
)
def test_a_name_says_repository_revision_and_file(name: str, meant: HubName) -> None:
    assert parse_hub_name(name) == meant
    assert parse_hub_name(str(meant)) == meant


def test_every_preset_has_a_short_name_that_leads_to_its_repository() -> None:
    for preset in PRESETS.values():
        assert parse_hub_name(preset.name).repo_id == preset.repo_id


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-3.1-8b-instuct", "llama-3.1-8b-instruct"),
        ("smollm2-135m-instrukt", "smollm2-135m-instruct"),
        ("nothing-like-it", "neither a local path nor a short name"),
        ("org/name:weights.pth", "only a .gguf file"),
        ("org/../name", "not a model name"),
        ("org/name@../../x", "'..' leads out of a repository"),
        ("org/name:../x.gguf", "'..' leads out of a repository"),
        ("", "not a model name"),
        ("a/b/c", "not a model name"),
        ("org/na me", "not a model name"),
        ("x" * 5000 + "/\0", "not a model name"),
        ("./nowhere", "no file or folder at './nowhere'"),
        ("/no/where", "no file or folder at '/no/where'"),
        ("~nobody-of-this-name/model", "no file or folder"),
    ],
)
def test_a_name_that_means_nothing_is_refused_in_one_sentence(caches: Path, name: str, said: str) -> None:
    del caches
    for ask in (resolve, resolve_config):
        with pytest.raises(ResolveError, match=r"\w") as refused:
            ask(name)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_an_existing_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("smollm2-135m-instruct")
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert resolve("smollm2-135m-instruct") == folder


@pytest.mark.parametrize(
    ("files", "opened", "described"),
    [
        (["model.safetensors", "config.json", "original/consolidated.00.pth"], ".", "config.json"),
        (["model.safetensors.index.json", "config.json"], ".", "config.json"),
        (["consolidated.00.pth", "params.json"], ".", "."),
        (["original/consolidated.00.pth", "original/params.json"], "original", "original"),
        (["x.gguf"], "x.gguf", "x.gguf"),
        (
            ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"],
            "x-00001-of-00002.gguf",
            "x-00001-of-00002.gguf",
        ),
    ],
)
def test_a_local_folder_in_each_layout_is_recognised(
    tmp_path: Path, files: list[str], opened: str, described: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert resolve(str(tmp_path)) == tmp_path / opened
    assert resolve_config(str(tmp_path)) == tmp_path / described


def test_a_local_file_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert resolve(str(file)) == resolve_config(str(file)) == file


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="holds no weights: expected"):
        resolve(str(tmp_path))
    assert resolve_config(str(tmp_path)) == tmp_path / "config.json"


def test_a_folder_with_several_gguf_files_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files: name one of a\.gguf, b\.gguf"):
        resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve_config(str(tmp_path))
