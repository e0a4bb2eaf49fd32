"""KTO: mismatched pairs, the reference point, ranks, what it teaches. TRL is met in `test_against_trl`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from corral.tune.config import KTOConfig
from corral.tune.examples import Rated
from corral.tune.objectives.kto import KTO, completion_losses, mismatched
from tests.tune.objectives.preferences import adapted, loss_of, rated, trained


def test_mismatched_pairs_have_the_completion_before_theirs_and_are_cut() -> None:
    def item(prompt: Sequence[int], completion: Sequence[int]) -> Rated:
        return Rated(np.array(prompt, np.int32), np.array(completion, np.int32), True)

    items = [item([1, 2], [3]), item([4], [5, 6, 7]), item([8, 9], [10, 11])]
    documents = mismatched(items, max_length=4)
    assert [document.tokens.tolist() for document in documents] == [[1, 2, 10, 11], [4, 3], [8, 9, 5, 6]]
    assert [document.num_trained for document in documents] == [2, 1, 2]


def test_losses_are_weighted_and_measured_from_the_reference_point() -> None:
    config = KTOConfig(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    ratios, desirable = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    losses = completion_losses(config, ratios, torch.tensor(0.4), desirable)
    value = float(torch.sigmoid(torch.tensor(0.5 * 0.6)))
    assert losses.tolist() == pytest.approx([2 * (1 - value), 3 * value])


def test_the_first_steps_losses_are_one_half() -> None:
    network, _ = adapted()
    loss = loss_of(KTO(KTOConfig()), network, rated(5))
    assert float(loss.sum.detach()) == pytest.approx(2.5)
    assert float(loss.metrics["kl"].sum) == 0


def test_a_microbatch_of_one_kind_measures_it_alone() -> None:
    network, _ = adapted(moved=0)
    items = [item for item in rated(6) if isinstance(item, Rated) and item.desirable]
    metrics = loss_of(KTO(KTOConfig()), network, items).metrics
    assert float(metrics["rewards/chosen"].count) == len(items)
    assert float(metrics["rewards/rejected"].count) == 0
    assert float(metrics["rewards/rejected"].sum) == 0


def test_the_reference_point_is_a_mean_over_ranks_that_no_gradient_sees() -> None:
    network, adapters = adapted(moved=0)
    items = rated(4, seed=2)
    asked: list[list[float]] = []

    def with_another_rank(values: Sequence[float]) -> list[float]:
        asked.append(list(values))
        return [values[0] + 6.0, values[1] + 2]

    loss = loss_of(KTO(KTOConfig(), total=with_another_rank), network, items)
    ((ratio, count),) = asked
    assert count == 4
    assert float(loss.metrics["kl"].sum) == pytest.approx(max(0.0, (ratio + 6) / 6))
    assert not loss.metrics["kl"].sum.requires_grad
    assert any(p.grad is not None for p in adapters.parameters())
    with torch.no_grad():  # ranks may evaluate different numbers of microbatches
        objective = KTO(KTOConfig(), total=with_another_rank)
        objective(network, objective.collate(items))
    assert len(asked) == 1


def test_the_reference_point_is_never_negative() -> None:
    network, _ = adapted(moved=0)
    objective = KTO(KTOConfig(), total=lambda values: [-1.0, values[1]])
    assert float(loss_of(objective, network, rated(4)).metrics["kl"].sum) == 0


def test_held_out_completions_are_told_apart_after_training() -> None:
    network, adapters = adapted()
    before, after = trained(
        KTO(KTOConfig()),
        network,
        list(adapters.parameters()),
        rated(96, seed=1, telling=True),
        rated(48, seed=2, telling=True),
        lr=0.01,
    )
    assert before.metrics["rewards/chosen"] == before.metrics["rewards/rejected"] == 0
    assert after.metrics["rewards/chosen"] > after.metrics["rewards/rejected"] + 0.2
    assert after.loss < before.loss
