"""The reference's log-probabilities: computed once, kept by data and model, the same as without adapters."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from corral.checkpoints.cache import cache_folder
from corral.errors import CorralError
from corral.model.attention import Attend, PackedCausal
from corral.tune.batch import Batch
from corral.tune.config import DPOConfig, KTOConfig
from corral.tune.errors import TuneError
from corral.tune.examples import Item, Pair, Rated, Tokens
from corral.tune.feed import Feed, FeedOptions
from corral.tune.network import Network
from corral.tune.objectives.dpo import DPO
from corral.tune.objectives.kto import KTO
from corral.tune.objectives.objective import Objective
from corral.tune.reference import (
    Referenced,
    ReferencedPair,
    ReferencedRated,
    is_cached,
    model_hash,
    with_reference,
)
from tests.random_models import SMALL, random_model
from tests.tune.objectives.preferences import adapted, logprobs_of, loss_of, pairs, rated, trainable


class Ran(Exception):
    """The network was run."""


def refuses(bounds: tuple[int, ...]) -> Attend:
    raise Ran(bounds)


def cached(items: Sequence[Item], network: Network, folder: Path) -> Referenced:
    return with_reference(items, network, "model", batch_tokens=40, max_length=64, folder=folder)


@pytest.mark.parametrize(
    ("objective", "items"), [(DPO(DPOConfig()), pairs(7)), (KTO(KTOConfig()), rated(7))], ids=["dpo", "kto"]
)
def test_cached_is_the_same_as_without_adapters(
    objective: Objective, items: list[Item], tmp_path: Path
) -> None:
    losses, found = [], []
    for kept in (items, list(cached(items, adapted(moved=0)[0], tmp_path))):
        network, adapters = adapted(moved=0)
        losses.append(loss_of(objective, network, kept))
        found.append([p.grad for p in adapters.parameters()])
    torch.testing.assert_close(losses[0].sum, losses[1].sum)
    assert losses[0].metrics.keys() == losses[1].metrics.keys()
    for name, mean in losses[0].metrics.items():
        torch.testing.assert_close(mean.sum, losses[1].metrics[name].sum, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_file_has_sums_and_counts_of_each_completion(tmp_path: Path) -> None:
    network, items = trainable(), pairs(5)
    cached(items, network, tmp_path)
    (file,) = tmp_path.iterdir()
    arrays = load_file(file)
    assert arrays["logprobs"].dtype == np.float32
    for item, logprobs, counts in zip(items, arrays["logprobs"], arrays["counts"], strict=True):
        assert isinstance(item, Pair)
        both = [item.chosen, item.rejected]
        assert logprobs.tolist() == pytest.approx(logprobs_of(network, both).tolist(), rel=1e-5)
        assert counts.tolist() == [document.num_trained for document in both]


def test_the_second_time_the_network_is_not_run(tmp_path: Path) -> None:
    first = cached(pairs(5), trainable(), tmp_path)
    idle = Network(random_model(SMALL), attend=refuses)
    again = cached(pairs(5), idle, tmp_path)
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, ReferencedPair)
        assert isinstance(other, ReferencedPair)
        assert (one.chosen_logprob, one.rejected_logprob) == (other.chosen_logprob, other.rejected_logprob)
    for items, model, max_length in (
        (pairs(6), "model", 64),
        (pairs(5, seed=1), "model", 64),
        (pairs(5), "another model", 64),
        (pairs(5), "model", 63),
    ):
        with pytest.raises(Ran):
            with_reference(items, idle, model, batch_tokens=40, max_length=max_length, folder=tmp_path)


def test_a_mask_is_part_of_the_data(tmp_path: Path) -> None:
    (pair,) = pairs(1, chosen_length=3)
    assert isinstance(pair, Pair)
    cached([pair], trainable(), tmp_path)
    pair.chosen.trained[-1] = False
    with pytest.raises(Ran):
        cached([pair], Network(random_model(SMALL), attend=refuses), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"nothing of the kind", None], ids=["empty", "other", "cut"])
def test_a_broken_file_is_made_again(damage: bytes | None, tmp_path: Path) -> None:
    first = cached(pairs(5), trainable(), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] if damage is None else damage)
    again = cached(pairs(5), trainable(), tmp_path)
    assert file.read_bytes() == whole
    assert [vars(item)["chosen_logprob"] for item in again] == [
        vars(item)["chosen_logprob"] for item in first
    ]


def test_nothing_is_written_where_it_was_interrupted(tmp_path: Path) -> None:
    runs: list[tuple[int, ...]] = []

    def stops(bounds: tuple[int, ...]) -> Attend:
        runs.append(bounds)
        if len(runs) == 2:
            raise Ran
        return PackedCausal(bounds)

    with pytest.raises(Ran):
        cached(pairs(9), Network(random_model(SMALL), attend=stops), tmp_path)
    assert len(runs) == 2
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("corral.tune.reference.save", full)
    with pytest.raises(CorralError, match="disk is full"):
        cached(pairs(5), trainable(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_CACHE", str(tmp_path))
    with_reference(pairs(2), trainable(), "model", batch_tokens=100)
    assert len(list((cache_folder() / "tune" / "reference").iterdir())) == 1


def test_batches_have_up_to_so_many_tokens(tmp_path: Path) -> None:
    seen: list[int] = []

    def noted(bounds: tuple[int, ...]) -> Attend:
        seen.append(bounds[-1])
        return PackedCausal(bounds)

    items = pairs(12)
    told: list[tuple[int, int]] = []
    with_reference(
        items,
        Network(random_model(SMALL), attend=noted),
        "model",
        batch_tokens=40,
        folder=tmp_path,
        progress=lambda done, total: told.append((done, total)),
    )
    assert sum(seen) == sum(map(len, items))
    assert max(seen) <= 40
    assert len(seen) < 12
    assert told[-1] == (12, 12)


def test_the_reference_may_have_the_adapters_that_training_starts_from(tmp_path: Path) -> None:
    items = pairs(4)
    network, _ = adapted(moved=0)
    start = with_reference(items, network, "model", batch_tokens=100, adapted=True, folder=tmp_path)
    loss = loss_of(DPO(DPOConfig()), network, list(start))
    assert float(loss.sum.detach()) / 4 == pytest.approx(np.log(2), rel=1e-5)
    base = with_reference(items, network, "model", batch_tokens=100, folder=tmp_path)
    assert abs(float(loss_of(DPO(DPOConfig()), network, list(base)).sum.detach()) / 4 - np.log(2)) > 1e-3


def test_mismatched_completions_are_those_before_that_answer_another_prompt(tmp_path: Path) -> None:
    def item(prompt: Sequence[int], completion: Sequence[int]) -> Rated:
        return Rated(np.array(prompt, np.int32), np.array(completion, np.int32), True)

    def others(*items: Rated) -> list[list[int]]:
        found: list[Tokens] = []
        for kept in with_reference(items, trainable(), "m", batch_tokens=99, max_length=4, folder=tmp_path):
            assert isinstance(kept, ReferencedRated)
            found.append(kept.other)
        return [other.tolist() for other in found]

    one, two, three = item([1], [10]), item([1], [11]), item([2, 3, 4], [12, 13, 14])
    assert others(one, two, three) == [[12, 13, 14], [12, 13, 14], [11]]  # the last one is cut to fit
    assert others(three, one, two) == [[11], [12, 13, 14], [12, 13, 14]]
    assert others(one, two) == [[11], [10]]  # there is no other prompt


def test_a_feed_takes_the_data_with_its_reference(tmp_path: Path) -> None:
    items = cached(pairs(6), trainable(), tmp_path)
    feed = Feed(items, [len(item) for item in items], FeedOptions(2, 3, max_length=64))
    for microbatch in next(feed.steps()).microbatches:
        assert all(isinstance(item, ReferencedPair) for item in microbatch)


class Together:
    """One of several ranks, each in a thread."""

    def __init__(self, rank: int, size: int, sums: list[list[float]], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._sums, self._barrier = rank, size, sums, barrier

    def total(self, values: Sequence[float]) -> list[float]:
        self._sums[self.rank] = list(values)
        self._barrier.wait(20)
        totals = [sum(column) for column in zip(*self._sums, strict=True)]
        self._barrier.wait(20)
        return totals

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        raise AssertionError


@pytest.mark.parametrize("size", [2, 3, 9])
def test_ranks_share_the_work_and_all_have_all_of_it(size: int, tmp_path: Path) -> None:
    items = pairs(7)
    alone = cached(items, trainable(), tmp_path / "alone")
    found: dict[int, Referenced] = {}
    runs = [0] * size
    sums, barrier = [[0.0]] * size, threading.Barrier(size)

    def work(rank: int) -> None:
        def noted(bounds: tuple[int, ...]) -> Attend:
            runs[rank] += 1
            return PackedCausal(bounds)

        network = Network(random_model(SMALL), attend=noted)
        ranks = Together(rank, size, sums, barrier)
        found[rank] = with_reference(
            items, network, "model", batch_tokens=40, folder=tmp_path / "together", ranks=ranks
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(runs)) == 1  # a sharded network needs all ranks at once
    for kept in found.values():
        np.testing.assert_allclose(kept._logprobs, alone._logprobs, rtol=1e-5)
    assert sorted(found) == list(range(size))
    assert len(list((tmp_path / "together").iterdir())) == 1


def test_a_rank_whose_disk_lacks_the_file_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """Only the first rank has it, on a disk of its own; a sharded network needs both to run."""
    items = pairs(5)
    cached(items, trainable(), tmp_path / "0")
    sums, barrier = [[0.0]] * 2, threading.Barrier(2)
    found: dict[int, Referenced] = {}

    def work(rank: int) -> None:
        ranks, folder = Together(rank, 2, sums, barrier), tmp_path / str(rank)
        found[rank] = with_reference(
            items, trainable(), "model", batch_tokens=40, max_length=64, folder=folder, ranks=ranks
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [0, 1]
    np.testing.assert_allclose(found[0]._logprobs, found[1]._logprobs)


def test_a_models_hash_is_of_its_weights_names_and_configuration() -> None:
    first = model_hash(random_model(SMALL))
    assert model_hash(random_model(SMALL)) == first
    assert model_hash(random_model(SMALL, seed=1)) != first
    assert model_hash(random_model(SMALL).bfloat16()) != first
    changed = random_model(SMALL)
    with torch.no_grad():
        changed.model.norm.weight[3] += 1e-6
    assert model_hash(changed) != first


def test_the_way_is_chosen_by_what_is_trained() -> None:
    assert not is_cached("dpo", "auto", adapters=True)
    assert is_cached("dpo", "auto", adapters=False)
    assert is_cached("dpo", "auto", adapters=True, continued=True)
    assert is_cached("kto", "cached", adapters=True)
    assert not is_cached("kto", "adapter", adapters=True, continued=True)
    with pytest.raises(TuneError, match=r"kto.reference is .adapter., but parameters.method is .full."):
        is_cached("kto", "adapter", adapters=False)


def test_a_whole_model_that_is_trained_meets_what_it_was(tmp_path: Path) -> None:
    network = trainable()
    items = list(cached(pairs(4), network, tmp_path))
    loss = loss_of(DPO(DPOConfig()), network, items)
    assert float(loss.sum.detach()) / 4 == pytest.approx(np.log(2), rel=1e-5)
    with torch.no_grad():
        for parameter in network.model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    batch = DPO(DPOConfig()).collate(items)
    assert isinstance(batch, Batch)
    assert float(DPO(DPOConfig())(network, batch).sum.detach()) < 4 * np.log(2)
