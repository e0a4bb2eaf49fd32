"""The second start of a model: packed weights come from the cache, and are the same bits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.source import open_checkpoint
from corral.engine import networks
from corral.engine.cache.storage import KVStorage
from corral.engine.networks import Runners, load_network
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.batch import Span
from corral.kernels import packed_cache, packed_file
from corral.kernels.keeping import Keeping, wait_for_all
from corral.kernels.packed_cache import CacheKey, PackedCache
from corral.kernels.packed_llama import PackedLlama
from corral.quant import Weight
from tests.checkpoints.writers import write_gguf, write_hf, write_meta
from tests.kernels.networks import MODEL, ODD, TIED, packed
from tests.random_models import random_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; small models are kept too."""
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CORRAL_PACKED_CACHE_GB", raising=False)
    monkeypatch.setattr(networks, "_WORTH_KEEPING", 0)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    write_hf(random_model(MODEL), tmp_path / "model", shards=2)
    return open_checkpoint(tmp_path / "model")


def load(checkpoint: Checkpoint, dtype: str = "auto", notices: list[str] | None = None) -> PackedLlama:
    """Loads, and waits until what was packed is kept."""
    told = [] if notices is None else notices
    network = load_network(checkpoint, dtype, CPU, EngineOptions(), told.append)
    wait_for_all()
    assert isinstance(network, PackedLlama)
    return network


def logits(network: PackedLlama) -> Tensor:
    storage = KVStorage(network.config, 8, 8, "auto", network.dtype)
    runner = Runners(EngineOptions(threads=2), CPU).runner(network, storage, AdapterSet(network))
    tokens = list(range(3, 40))
    hidden = runner.run([Span(tokens, 0, list(range(1, 7)), range(len(tokens)), None)])
    return runner.logits(hidden, [None] * len(tokens))


class Unread:
    """A checkpoint whose tensors nobody may ask for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> object:
        return getattr(self._checkpoint, name)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        raise AssertionError("the tensors were read")

    def weights(self, prefix: str = "") -> Iterator[tuple[str, Weight]]:
        raise AssertionError("the weights were read")


def kept(checkpoint: Checkpoint, dtype: str = "auto") -> PackedLlama:
    """Loads from the cache alone."""
    return load(Unread(checkpoint), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [MODEL, TIED, ODD], ids=["plain", "tied", "odd sizes and biases"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_second_load_reads_no_tensor_and_gives_the_same_bits(
    config: object, dtype: str, tmp_path: Path
) -> None:
    write_hf(random_model(config), tmp_path / "model", shards=2)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(tmp_path / "model")
    first, second = load(checkpoint, dtype), kept(checkpoint, dtype)
    assert second.dtype == first.dtype
    assert torch.equal(logits(first), logits(second))


def test_every_format_says_which_files_it_is_made_of(tmp_path: Path) -> None:
    model = random_model(MODEL)
    write_meta(model, tmp_path / "meta", 2)
    write_gguf(model, tmp_path / "model.gguf", GgmlType.Q4_0)
    for path in (tmp_path / "meta", tmp_path / "model.gguf"):
        checkpoint = open_checkpoint(path)
        first = load(checkpoint)
        assert torch.equal(logits(first), logits(kept(checkpoint)))
        assert checkpoint.files
        assert all(file.is_file() for file in checkpoint.files)


def test_another_type_is_packed_on_its_own(checkpoint: Checkpoint, folder: Path) -> None:
    wide, narrow = load(checkpoint, "float32"), load(checkpoint, "bfloat16")
    assert wide.num_bytes > narrow.num_bytes
    assert len(list(folder.iterdir())) == 2
    assert kept(checkpoint, "float32").num_bytes == wide.num_bytes


def test_a_changed_source_is_packed_again_in_place_of_the_old_one(
    checkpoint: Checkpoint, folder: Path
) -> None:
    before = logits(load(checkpoint))
    write_hf(random_model(MODEL, seed=1), checkpoint.path, shards=2)
    changed = open_checkpoint(checkpoint.path)
    after = logits(load(changed))
    assert not torch.equal(before, after)
    assert torch.equal(logits(kept(changed)), after)
    assert len(list(folder.iterdir())) == 1


def test_changed_code_that_packs_does_not_use_what_the_old_one_packed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(checkpoint)
    monkeypatch.setattr("corral.kernels.packed_cache._packing_code", lambda: "newer")
    with pytest.raises(AssertionError, match="were read"):
        kept(checkpoint)


@pytest.mark.parametrize("at", [3, 100, -1000], ids=["start", "header", "weights"])
def test_a_damaged_file_is_written_anew(checkpoint: Checkpoint, folder: Path, at: int) -> None:
    good = logits(load(checkpoint))
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[at] ^= 0x55
    file.write_bytes(data)
    assert torch.equal(logits(load(checkpoint)), good)
    assert torch.equal(logits(kept(checkpoint)), good)


def test_weights_of_another_shape_are_not_used(checkpoint: Checkpoint) -> None:
    choices: dict[str, str | bool] = {
        "as_stored": True,
        "dtype": str(load(checkpoint).dtype).removeprefix("torch."),
    }
    other = packed(ODD)
    PackedCache().store(CacheKey.of(checkpoint.files, choices), other.matrices, other.vectors)
    assert load(checkpoint).matrices["lm_head"].shape == (MODEL.vocab_size, MODEL.hidden_size)


def test_a_folder_that_cannot_be_written_is_told_and_the_model_runs(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    notices: list[str] = []
    network = load(checkpoint, notices=notices)
    assert logits(network).isfinite().all()
    (notice,) = notices
    assert "not kept" in notice


def test_the_cache_can_be_turned_off(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_PACKED_CACHE_GB", "0")
    notices: list[str] = []
    load(checkpoint, notices=notices)
    assert (notices, folder.exists()) == ([], False)


def test_what_is_packed_in_no_time_is_not_kept(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "_WORTH_KEEPING", 10**9)
    load(checkpoint)
    assert not folder.exists()


_PROCESS = """
import sys, torch
from pathlib import Path
from corral.checkpoints.source import open_checkpoint
from corral.engine import networks
from corral.engine.options import EngineOptions
networks._WORTH_KEEPING = 0
checkpoint = open_checkpoint(Path(sys.argv[1]))
network = networks.load_network(checkpoint, "auto", torch.device("cpu"), EngineOptions(), print)
"""


def test_processes_that_end_at_once_keep_it_and_do_not_disturb_each_other(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", _PROCESS, str(checkpoint.path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, b"")
    assert len(list(folder.iterdir())) == 1
    theirs = logits(kept(checkpoint))
    monkeypatch.setenv("CORRAL_PACKED_CACHE_GB", "0")
    assert torch.equal(theirs, logits(load(checkpoint)))


def test_an_end_that_does_not_wait_leaves_nothing_behind(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = packed(MODEL)
    cache = PackedCache()
    begun, write = Event(), packed_file.write

    def slowly(*arguments: Any) -> None:
        begun.set()
        is_stopped = arguments[-1]
        while not is_stopped():
            time.sleep(0.01)
        write(*arguments)

    monkeypatch.setattr(packed_cache, "write", slowly)
    running = Keeping(cache, CacheKey.of(checkpoint.files, {}), network, lambda _: None)
    assert begun.wait(10)
    wait_for_all(0.05)
    assert running.wait(0)
    assert list(folder.iterdir()) == []
