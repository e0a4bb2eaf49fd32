"""ORPO: no reference. TRL's own is met in `test_against_trl`."""

from __future__ import annotations

import math

import torch

from corral.tune.config import ORPOConfig
from corral.tune.objectives.orpo import ORPO, log_odds_ratio
from tests.tune.objectives.preferences import adapted, gradients_of_steps, pairs, require_same, trained


def test_the_odds_ratio_is_that_of_probabilities() -> None:
    p, q = 0.8, 0.3
    ratio = log_odds_ratio(torch.tensor([math.log(p)]), torch.tensor([math.log(q)]))
    torch.testing.assert_close(ratio, torch.tensor([math.log(p / (1 - p) / (q / (1 - q)))]))


def test_a_certain_completion_has_finite_odds_and_a_finite_gradient() -> None:
    chosen = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    torch.autograd.backward(log_odds_ratio(chosen, torch.tensor([-1.0, -1.0, 0.0])).sum())
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_how_a_step_is_cut_changes_nothing() -> None:
    objective, items = ORPO(ORPOConfig(beta=0.5)), pairs(8, seed=1)
    together = gradients_of_steps(objective, items, batch_size=8, accumulation=1)
    for batch_size, accumulation in ((1, 8), (3, 3)):
        require_same(gradients_of_steps(objective, items, batch_size, accumulation), together)


def test_held_out_completions_get_likelier_and_told_apart() -> None:
    network, adapters = adapted()
    before, after = trained(
        ORPO(ORPOConfig()),
        network,
        list(adapters.parameters()),
        pairs(96, seed=1, telling=True),
        pairs(32, seed=2, telling=True),
        lr=0.01,
    )
    assert after.metrics["nll_loss"] < before.metrics["nll_loss"] - 0.2
    assert after.metrics["rewards/accuracies"] > max(0.9, before.metrics["rewards/accuracies"])
    assert after.loss < before.loss
