"""Downloads from a Hub that behaves: which files, where they land, and what is done when they are there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import huggingface_hub
import pytest

from corral.checkpoints.resolve import resolve, resolve_config
from corral.errors import ResolveError
from tests.checkpoints.conftest import Recorder
from tests.checkpoints.fake_hub import FakeHub


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_arrives_with_its_tokenizer_and_without_other_weights(
    hub: FakeHub, tiny: dict[str, bytes], recorder: Recorder
) -> None:
    hub.add_repo("org/tiny", tiny)
    path = resolve("org/tiny", report=recorder)
    wanted = {name for name in tiny if name.endswith((".json", ".jinja", ".safetensors")) and "/" not in name}
    assert files_of(path) == wanted
    assert all((path / name).read_bytes() == tiny[name] for name in wanted)
    total = sum(len(content) for content in {tiny[name] for name in wanted})  # equal files come once
    assert recorder.steps[-1] == ("org/tiny", total, total)
    assert recorder.notices == [f"Downloading org/tiny from {hub.endpoint}: 5 files, 102.5 kB."]


def test_a_sharded_model_arrives_with_the_shards_that_its_index_names(
    hub: FakeHub, sharded: dict[str, bytes]
) -> None:
    hub.add_repo("org/sharded", sharded)
    path = resolve("org/sharded")
    assert {name for name in files_of(path) if "safetensors" in name} == {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_repository_with_metas_files_alone_gives_their_folder(hub: FakeHub, tiny: dict[str, bytes]) -> None:
    del tiny["model.safetensors"]
    hub.add_repo("org/meta", tiny)
    path = resolve("org/meta")
    assert path.name == "original"
    assert files_of(path) == {"consolidated.00.pth", "params.json"}


def test_the_only_gguf_file_is_taken_and_one_of_several_is_named(hub: FakeHub) -> None:
    hub.add_repo("org/one", {"README.md": b"#", "only.gguf": b"GGUF"})
    hub.add_repo("org/several", {"a.gguf": b"GGUF a", "deep/b.gguf": b"GGUF b"})
    assert resolve("org/one").read_bytes() == b"GGUF"
    with pytest.raises(ResolveError, match=r"has 2 GGUF files\. Choose one of a\.gguf, deep/b\.gguf"):
        resolve("org/several")
    assert resolve("org/several:deep/b.gguf").read_bytes() == b"GGUF b"
    assert resolve("org/several:a.gguf").read_bytes() == b"GGUF a"
    with pytest.raises(ResolveError, match=r"no file 'c\.gguf'.*org/several:a\.gguf"):
        resolve("org/several:c.gguf")


def test_all_parts_of_a_split_gguf_file_arrive(hub: FakeHub) -> None:
    parts = {f"x-0000{part}-of-00003.gguf": b"GGUF %d" % part for part in (1, 2, 3)}
    hub.add_repo("org/split", parts)
    path = resolve("org/split")
    assert path.name == "x-00001-of-00003.gguf"
    assert files_of(path.parent) == set(parts)


def test_a_repository_without_readable_weights_is_refused(hub: FakeHub) -> None:
    hub.add_repo("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(ResolveError, match="org/old has no weights that can be read"):
        resolve("org/old")


def test_a_cached_model_is_used_without_asking_the_hub(hub: FakeHub, tiny: dict[str, bytes]) -> None:
    commit = hub.add_repo("org/tiny", tiny)
    path = resolve("org/tiny")
    hub.log.clear()
    assert resolve("org/tiny") == resolve(f"org/tiny@{commit}") == path
    assert resolve("org/tiny", allow_download=False) == path
    assert hub.log == []


def test_refreshing_follows_the_branch_and_fetches_only_what_changed(
    hub: FakeHub, tiny: dict[str, bytes]
) -> None:
    hub.add_repo("org/tiny", tiny)
    old = resolve("org/tiny")
    new_commit = hub.add_repo("org/tiny", {**tiny, "model.safetensors": b"better"})
    assert resolve("org/tiny") == old
    hub.log.clear()
    new = resolve("org/tiny", refresh=True)
    assert (new.name, (new / "model.safetensors").read_bytes()) == (new_commit, b"better")
    assert hub.gets("model.safetensors") == 1
    assert hub.gets("tokenizer.json") == 0
    assert resolve("org/tiny") == new
    assert (old / "model.safetensors").read_bytes() == tiny["model.safetensors"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: FakeHub, tiny: dict[str, bytes]) -> None:
    main = hub.add_repo("org/tiny", tiny)
    tagged = hub.add_repo("org/tiny", {**tiny, "config.json": b'{"v": 1}'}, revision="v1.0")
    hub.add_repo("org/tiny", {**tiny, "config.json": b'{"pr": 3}'}, revision="refs/pr/3")
    assert resolve("org/tiny@v1.0").name == tagged
    assert resolve(f"org/tiny@{main}").name == main
    assert (resolve("org/tiny@refs/pr/3") / "config.json").read_bytes() == b'{"pr": 3}'


def test_the_cache_is_shared_with_other_programs(hub: FakeHub, tiny: dict[str, bytes], caches: Path) -> None:
    hub.add_repo("org/tiny", tiny)
    ours = resolve("org/tiny")
    shared = caches / "huggingface" / "hub"
    found = huggingface_hub.snapshot_download("org/tiny", cache_dir=shared, local_files_only=True)
    assert found == str(ours)

    hub.add_repo("org/theirs", tiny)
    theirs = huggingface_hub.snapshot_download("org/theirs", cache_dir=shared, endpoint=hub.endpoint)
    hub.log.clear()
    assert str(resolve("org/theirs")) == theirs
    assert hub.log == []


@pytest.mark.parametrize("lacking", ["tokenizer.json", "model-00002-of-00002.safetensors", "config.json"])
def test_what_another_program_fetched_in_part_is_completed(
    hub: FakeHub, sharded: dict[str, bytes], caches: Path, lacking: str
) -> None:
    hub.add_repo("org/part", sharded)
    huggingface_hub.snapshot_download(
        "org/part", cache_dir=caches / "huggingface" / "hub", endpoint=hub.endpoint, ignore_patterns=lacking
    )
    with pytest.raises(ResolveError, match="not complete in the cache"):
        resolve("org/part", allow_download=False)
    assert (resolve("org/part") / lacking).read_bytes() == sharded[lacking]


def test_only_the_configuration_is_fetched_when_only_that_is_asked_for(
    hub: FakeHub, tiny: dict[str, bytes]
) -> None:
    hub.add_repo("org/tiny", tiny)
    with pytest.raises(ResolveError, match="not complete in the cache"):
        resolve_config("org/tiny", allow_download=False)
    config = resolve_config("org/tiny")
    assert config.read_bytes() == tiny["config.json"]
    assert files_of(config.parent) == {"config.json", "generation_config.json"}
    hub.log.clear()
    assert resolve_config("org/tiny", allow_download=False) == config
    assert hub.log == []
    assert (resolve("org/tiny") / "model.safetensors").exists()
    assert resolve_config("org/tiny") == config


def test_the_configuration_of_gguf_files_needs_the_files(hub: FakeHub) -> None:
    hub.add_repo("org/one", {"only.gguf": b"GGUF"})
    with pytest.raises(ResolveError, match="`corral pull org/one`"):
        resolve_config("org/one")
    path = resolve("org/one")
    assert resolve_config("org/one") == resolve_config("org/one:only.gguf") == path


def test_pieces_that_a_killed_download_left_are_removed_after_a_day(
    hub: FakeHub, tiny: dict[str, bytes], caches: Path
) -> None:
    hub.add_repo("org/tiny", tiny)
    blobs = caches / "huggingface" / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    old, young = blobs / "old.incomplete", blobs / "young.incomplete"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    resolve("org/tiny")
    assert not old.exists()
    assert young.exists()
