"""What goes wrong with a Hub: every case gets one sentence, and nothing half-done is taken for whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from corral.checkpoints.hub_errors import HubOutOfReach, explain
from corral.checkpoints.names import HubName
from corral.checkpoints.resolve import resolve, resolve_config
from corral.errors import CorralError, ResolveError
from tests.checkpoints.conftest import Recorder
from tests.checkpoints.fake_hub import FakeHub


def refusal(name: str) -> str:
    with pytest.raises(CorralError) as refused:
        resolve(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def blobs_in(caches: Path) -> list[int]:
    return [path.stat().st_size for path in caches.rglob("blobs/*")]


def test_a_gated_repository_is_explained(hub: FakeHub, tiny: dict[str, bytes]) -> None:
    hub.add_repo("org/gated", tiny, gated=True)
    said = refusal("org/gated")
    assert f"accept its licence at {hub.endpoint}/org/gated, then set HF_TOKEN" in said


def test_a_token_without_access_to_a_gated_repository_is_explained(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/gated", tiny, gated=True)
    monkeypatch.setenv("HF_TOKEN", "plain")
    assert "the account of HF_TOKEN has no access to it" in refusal("org/gated")
    monkeypatch.setenv("HF_TOKEN", "good")
    assert (resolve("org/gated") / "model.safetensors").exists()


def test_a_wrong_token_is_explained(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/tiny", tiny)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "refuses the access token" in refusal("org/tiny")


def test_a_missing_or_private_repository_is_explained(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/private", tiny, private=True)
    assert "no model 'org/private'" in refusal("org/private")
    assert "Did you mean meta-llama/Llama-3.1-8B" in refusal("meta-llama/Llama-3.1-8")
    monkeypatch.setenv("HF_TOKEN", "good")
    assert resolve("org/private").is_dir()


def test_a_missing_revision_is_explained(hub: FakeHub, tiny: dict[str, bytes]) -> None:
    hub.add_repo("org/tiny", tiny)
    assert "has no revision 'v9'" in refusal("org/tiny@v9")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"status": 503}, "answers with HTTP status 503"),
        ({"status": 429}, "too many requests"),
        ({"status": 403}, "does not allow this account"),
        ({"not_a_hub": True}, "what answers there is not a Hub"),
    ],
)
def test_a_hub_that_answers_strangely_is_explained(
    hub: FakeHub, tiny: dict[str, bytes], knobs: dict[str, object], said: str
) -> None:
    hub.add_repo("org/tiny", tiny)
    for knob, value in knobs.items():
        setattr(hub, knob, value)
    assert said in refusal("org/tiny")
    with pytest.raises(ResolveError, match=said):
        resolve_config("org/tiny")


def test_a_hub_that_nobody_runs_is_out_of_reach(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del caches
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = refusal("org/tiny")
    assert "the Hub at http://127.0.0.1:9 is out of reach" in said
    assert "check the network or HF_ENDPOINT" in said


def test_a_hub_that_never_answers_is_given_up(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/tiny", tiny)
    hub.hang = True
    monkeypatch.setattr("corral.checkpoints.resolve.ANSWER_WITHIN", 0.3)
    assert "no answer in 0.3 seconds" in refusal("org/tiny")


def test_offline_uses_the_cache_and_says_what_it_lacks(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    hub.add_repo("org/tiny", tiny)
    path = resolve("org/tiny")
    hub.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny") == path
    assert resolve("org/tiny", refresh=True, report=recorder) == path
    assert "Using the copy of org/tiny in the cache" in recorder.notices[0]
    assert "HF_HUB_OFFLINE is set" in refusal("org/other")
    assert hub.log == []


def test_a_broken_connection_is_resumed_where_it_broke(hub: FakeHub, tiny: dict[str, bytes]) -> None:
    weights = os.urandom(12 << 20)
    hub.add_repo("org/tiny", {**tiny, "model.safetensors": weights})
    hub.cuts["model.safetensors"] = [11 << 20]
    path = resolve("org/tiny")
    assert (path / "model.safetensors").read_bytes() == weights
    assert hub.ranges == [f"bytes={10 << 20}-"]  # huggingface_hub writes pieces of 10 MiB


def test_a_connection_that_keeps_breaking_is_explained_and_tried_anew_next_time(
    hub: FakeHub, tiny: dict[str, bytes], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.add_repo("org/tiny", tiny)
    hub.cuts["model.safetensors"] = [50_000] * 6
    assert f"the Hub at {hub.endpoint} is out of reach (peer closed connection" in refusal("org/tiny")
    assert len(tiny["model.safetensors"]) not in blobs_in(caches)
    assert not list(caches.rglob("*.incomplete"))
    assert (resolve("org/tiny") / "model.safetensors").read_bytes() == tiny["model.safetensors"]


def test_an_interrupted_download_counts_as_absent_and_is_taken_up_again(
    hub: FakeHub, sharded: dict[str, bytes], caches: Path
) -> None:
    hub.add_repo("org/sharded", sharded)
    hub.unavailable.add("model-00002-of-00002.safetensors")
    assert "lacks a file of org/sharded that it lists" in refusal("org/sharded")
    with pytest.raises(ResolveError, match="not complete in the cache"):
        resolve("org/sharded", allow_download=False)
    assert not list(caches.rglob("*.incomplete"))
    hub.unavailable.clear()
    hub.log.clear()
    path = resolve("org/sharded")
    assert (path / "model-00002-of-00002.safetensors").read_bytes() == b"second" * 100
    assert hub.gets("model-00001-of-00002.safetensors") == 0


def test_a_download_killed_before_its_last_check_counts_as_absent(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_repo("org/tiny", tiny)

    def killed(path: Path) -> str:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as during:
        during.setattr("corral.checkpoints.snapshot.sha256_of", killed)
        with pytest.raises(KeyboardInterrupt, match=r"model\.safetensors"):
            resolve("org/tiny")
    for name in ("org/tiny", f"org/tiny@{commit}"):
        with pytest.raises(ResolveError, match="not complete in the cache"):
            resolve(name, allow_download=False)
    assert resolve(f"org/tiny@{commit}").name == commit
    assert hub.gets("model.safetensors") == 1


def test_an_interrupted_update_leaves_the_old_state_in_use(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/tiny", tiny)
    old = resolve("org/tiny")
    hub.add_repo("org/tiny", {**tiny, "model.safetensors": b"better"})
    hub.corrupt.add("model.safetensors")
    with pytest.raises(ResolveError, match="arrived damaged"):
        resolve("org/tiny", refresh=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny") == old


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused_and_not_left_behind(
    hub: FakeHub, tiny: dict[str, bytes], caches: Path, name: str
) -> None:
    hub.add_repo("org/tiny", tiny)
    hub.corrupt.add(name)
    assert f"{name} of org/tiny arrived damaged" in refusal("org/tiny")
    assert len(tiny[name]) not in blobs_in(caches)
    assert not list(caches.rglob(f"snapshots/*/{name}"))
    hub.corrupt.clear()
    assert (resolve("org/tiny") / name).read_bytes() == tiny[name]


def test_a_file_that_was_damaged_before_it_was_checked_is_fetched_again(
    hub: FakeHub, tiny: dict[str, bytes], caches: Path
) -> None:
    hub.add_repo("org/tiny", tiny)
    hub.unavailable.add("model.safetensors")
    refusal("org/tiny")
    (cached,) = caches.rglob("snapshots/*/tokenizer.json")
    cached.resolve().write_bytes(b"x" * len(tiny["tokenizer.json"]))
    hub.unavailable.clear()
    assert (resolve("org/tiny") / "tokenizer.json").read_bytes() == tiny["tokenizer.json"]


def test_a_shard_that_the_hub_does_not_have_is_named_before_anything_large_is_fetched(
    hub: FakeHub, sharded: dict[str, bytes]
) -> None:
    del sharded["model-00002-of-00002.safetensors"]
    hub.add_repo("org/sharded", sharded)
    assert "names 'model-00002-of-00002.safetensors', which is not there" in refusal("org/sharded")
    assert hub.gets("model-00001-of-00002.safetensors") == 0


def test_an_unreadable_index_is_named(hub: FakeHub, sharded: dict[str, bytes]) -> None:
    hub.add_repo("org/sharded", {**sharded, "model.safetensors.index.json": b'{"weight_map": '})
    assert "is no safetensors index" in refusal("org/sharded")


def test_a_full_disk_is_noticed_before_the_download(
    hub: FakeHub, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/tiny", tiny)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    said = refusal("org/tiny")
    assert "needs 102.5 kB on the disk of" in said
    assert "only 1.0 kB free" in said
    assert hub.gets("model.safetensors") == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("No space left on device")])
def test_a_disk_that_fills_during_a_download_is_explained(error: Exception) -> None:
    explained = explain(error, HubName("org/tiny"), "http://hub")
    assert "The disk is full: org/tiny" in str(explained)


def test_a_cache_that_cannot_be_written_is_explained() -> None:
    explained = explain(PermissionError(errno.EACCES, "no", "/cache/x"), HubName("org/tiny"), "http://hub")
    assert "The cache cannot be written at /cache/x" in str(explained)


def test_a_mistake_in_the_program_is_not_dressed_up_as_the_hubs() -> None:
    assert explain(KeyError("x"), HubName("org/tiny"), "http://hub") is None
    assert isinstance(explain(ConnectionError("x"), HubName("org/tiny"), "http://hub"), HubOutOfReach)
