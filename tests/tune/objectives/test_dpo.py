"""DPO by its formulas, its first step, and what it teaches. TRL's own is met in `test_against_trl`."""

from __future__ import annotations

import math

import pytest
import torch

from corral.tune.config import DPOConfig
from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item, Pair
from corral.tune.objectives.dpo import DPO, preference_losses
from tests.tune.objectives.preferences import (
    adapted,
    gradients_of_steps,
    logprobs_of,
    loss_of,
    pairs,
    referenced,
    require_same,
    trainable,
    trained,
)

LENGTHS = torch.tensor([2, 4, 5, 5])
RATIOS = torch.tensor([1.0, -2.0, 0.5, 1.5])  # chosen, rejected, chosen, rejected


def sigmoid_loss(logit: float) -> float:
    return math.log1p(math.exp(-logit))


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "robust"])
def test_the_first_steps_loss_is_log_2_and_its_rewards_are_0(loss: str) -> None:
    network, adapters = adapted()
    objective = DPO(DPOConfig.model_validate({"loss": loss, "label_smoothing": 0.1}))
    measured = loss_of(objective, network, pairs(3))
    assert float(measured.sum.detach()) == pytest.approx(3 * math.log(2), rel=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert float(measured.metrics[name].sum) == 0
        assert measured.metrics[name].count == 3
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.parameters())


def test_label_smoothing_counts_a_share_of_preferences_the_other_way_round() -> None:
    for loss, margins in (("sigmoid", (3.0, -1.0)), ("sigmoid_norm", (1.0, -0.2))):
        config = DPOConfig.model_validate({"loss": loss, "beta": 0.5, "label_smoothing": 0.2})
        wanted = [0.8 * sigmoid_loss(0.5 * m) + 0.2 * sigmoid_loss(-0.5 * m) for m in margins]
        assert preference_losses(config, RATIOS, LENGTHS).tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_robust_loss_is_unbiased() -> None:
    """Its mean over preferences that were turned round with the stated probability is the plain loss."""
    plain = preference_losses(DPOConfig(), RATIOS, LENGTHS)
    robust = DPOConfig(loss="robust", label_smoothing=0.3)
    turned = RATIOS.view(2, 2).flip(1).reshape(4)
    mean = 0.7 * preference_losses(robust, RATIOS, LENGTHS) + 0.3 * preference_losses(robust, turned, LENGTHS)
    torch.testing.assert_close(mean, plain)


def test_ipo_is_of_means_over_tokens() -> None:
    losses = preference_losses(DPOConfig(loss="ipo", beta=0.25), RATIOS, LENGTHS)
    assert losses.tolist() == pytest.approx([(1.0 - 2) ** 2, (-0.2 - 2) ** 2], rel=1e-6)


def test_the_likelihood_of_chosen_completions_is_a_mean_over_the_tokens_of_each() -> None:
    items, network = pairs(4, seed=1), adapted()[0]
    losses = [
        float(loss_of(DPO(DPOConfig(sft_weight=weight)), network, items).sum.detach())
        for weight in (0.0, 0.5)
    ]
    chosen = [item.chosen for item in items if isinstance(item, Pair)]
    means = logprobs_of(network, chosen) / torch.tensor([document.num_trained for document in chosen])
    assert losses[1] - losses[0] == pytest.approx(-0.5 * float(means.sum()), rel=1e-4)


@pytest.mark.parametrize("loss", ["hinge", "ipo"])
def test_label_smoothing_is_refused_where_the_loss_has_none(loss: str) -> None:
    with pytest.raises(TuneError, match=f'dpo.label_smoothing is 0.1, but dpo.loss "{loss}" has none'):
        DPO(DPOConfig.model_validate({"loss": loss, "label_smoothing": 0.1}))


def test_a_completion_that_was_cut_off_counts_without_a_nan() -> None:
    (whole,) = pairs(1)
    assert isinstance(whole, Pair)
    empty = Example(whole.rejected.tokens[:1], whole.rejected.trained[:1])
    items: list[Item] = [Pair(whole.chosen, empty)]
    network, _ = adapted()
    for loss in ("sigmoid", "ipo", "sigmoid_norm"):
        config = DPOConfig.model_validate({"loss": loss, "sft_weight": 1.0})
        assert math.isfinite(float(loss_of(DPO(config), network, items).sum.detach()))


@pytest.mark.parametrize("settings", [{}, {"loss": "ipo", "sft_weight": 0.5}, {"loss": "sigmoid_norm"}])
def test_how_a_step_is_cut_changes_nothing(settings: dict[str, object]) -> None:
    objective = DPO(DPOConfig.model_validate(settings))
    items = referenced(pairs(8, seed=1), trainable(seed=1))
    together = gradients_of_steps(objective, items, batch_size=8, accumulation=1)
    for batch_size, accumulation in ((1, 8), (2, 4), (3, 3)):
        require_same(gradients_of_steps(objective, items, batch_size, accumulation), together)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"])
def test_held_out_pairs_are_told_apart_after_training(loss: str) -> None:
    network, adapters = adapted()
    beta = 5.0 if loss == "sigmoid_norm" else 0.1
    objective = DPO(DPOConfig.model_validate({"loss": loss, "beta": beta}))
    before, after = trained(
        objective,
        network,
        list(adapters.parameters()),
        pairs(96, seed=1, telling=True),
        pairs(32, seed=2, telling=True),
        lr=0.01,
    )
    assert before.metrics["rewards/accuracies"] == 0  # all rewards are 0
    assert after.metrics["rewards/accuracies"] > 0.9
    assert after.metrics["rewards/margins"] > 0
    assert after.loss < before.loss
