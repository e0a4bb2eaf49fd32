"""Odds-ratio preference optimization (Hong et al., 2024, arXiv:2403.07691): no reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from corral.tune.batch import Batch
from corral.tune.config import ORPOConfig
from corral.tune.examples import Item
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss, Mean
from corral.tune.objectives.pairs import (
    chosen_and_rejected,
    documents_of,
    pairs_of,
    preference_metrics,
)

_NEARLY_ZERO = -1e-7  # a mean log-probability; at 0 the odds would be infinite


class ORPO:
    """The negative log-likelihood of the chosen completion, and beta times the loss of the odds ratio.

    Both are of means over a completion's tokens (eqs. 3 to 7 of the paper), summed over pairs. As in the
    paper's formula the prompt is not trained; TRL's likelihood is one of the prompt too, and a mean over all
    tokens of the microbatch.
    """

    smallest_batch = 1

    def __init__(self, config: ORPOConfig) -> None:
        self._beta = config.beta

    def collate(self, items: Sequence[Item]) -> Batch:
        return Batch.of(documents_of(pairs_of(items)), items)

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return batch.num_documents // 2

    def __call__(self, network: Network, batch: Batch) -> Loss:
        lengths = batch.trained_by_document().clamp(min=1)  # a completion may have been cut off
        means = batch.by_document(network.token_logprobs(batch)) / lengths
        chosen, rejected = chosen_and_rejected(means)
        odds = log_odds_ratio(chosen, rejected)
        losses = -chosen - self._beta * F.logsigmoid(odds)
        rewards = self._beta * torch.stack([chosen, rejected])
        own = {"nll_loss": -chosen, "log_odds_chosen": odds, "log_odds_ratio": F.logsigmoid(odds)}
        metrics = {name: Mean(values.detach().sum(), len(chosen)) for name, values in own.items()}
        return Loss(losses.sum(), {**metrics, **preference_metrics(chosen, rejected, rewards)})


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The logarithm of the odds of p over the odds of q, of mean log-probabilities log p and log q, [n]."""
    return _log_odds(chosen) - _log_odds(rejected)


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p))."""
    below = logprobs.clamp(max=_NEARLY_ZERO)
    return below - torch.log(-torch.expm1(below))
