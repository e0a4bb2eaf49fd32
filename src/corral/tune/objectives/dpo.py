"""Direct preference optimization (Rafailov et al., 2023, arXiv:2305.18290), and losses of its kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from corral.tune.batch import Batch
from corral.tune.config import DPOConfig
from corral.tune.errors import TuneError
from corral.tune.examples import Item
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss
from corral.tune.objectives.pairs import (
    chosen_and_rejected,
    documents_of,
    pairs_of,
    preference_metrics,
)
from corral.tune.reference import reference_logprobs

_SMOOTHED = ("sigmoid", "sigmoid_norm", "robust")


class DPO:
    """The loss of how much more the model prefers the chosen completion than its reference does.

    Its sum is over pairs, and so is that of the chosen completions' negative log-likelihood where
    `sft_weight` asks for it: a mean over the tokens of each (Pang et al., 2024, arXiv:2404.19733, eq. 1), so
    that what a pair counts does not depend on its neighbours. The reference is that which items bring along
    (`corral.tune.reference.Referenced`), or else the network without its adapters.

    Raises:
        TuneError: label smoothing for a loss that has none.
    """

    smallest_batch = 1

    def __init__(self, config: DPOConfig) -> None:
        if config.label_smoothing and config.loss not in _SMOOTHED:
            raise TuneError(
                f'dpo.label_smoothing is {config.label_smoothing}, but dpo.loss "{config.loss}" has none: '
                "set it to 0, or choose sigmoid, sigmoid_norm or robust"
            )
        self._config = config

    def collate(self, items: Sequence[Item]) -> Batch:
        return Batch.of(documents_of(pairs_of(items)), items)

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return batch.num_documents // 2

    def __call__(self, network: Network, batch: Batch) -> Loss:
        reference = reference_logprobs(network, batch)  # [documents]
        logprobs = batch.by_document(network.token_logprobs(batch))
        lengths = batch.trained_by_document().clamp(min=1)  # a completion may have been cut off
        losses = preference_losses(self._config, logprobs - reference, lengths)
        chosen, rejected = chosen_and_rejected(logprobs)
        if self._config.sft_weight:
            losses = losses - self._config.sft_weight * chosen / lengths[::2]
        rewards = self._config.beta * torch.stack(chosen_and_rejected(logprobs - reference))
        return Loss(losses.sum(), preference_metrics(chosen, rejected, rewards))


def preference_losses(config: DPOConfig, ratios: Tensor, lengths: Tensor) -> Tensor:
    """The loss of each of n pairs, without that of `sft_weight`.

    Args:
        ratios: log-probability of each completion, less that by the reference, [2n]: chosen, rejected, …
        lengths: tokens of each completion, [2n].
    """
    if config.loss in ("ipo", "sigmoid_norm"):
        ratios = ratios / lengths
    chosen, rejected = chosen_and_rejected(ratios)
    margins = chosen - rejected
    match config.loss:
        case "hinge":
            return F.relu(1 - config.beta * margins)
        case "ipo":
            return (margins - 1 / (2 * config.beta)) ** 2
        case "robust":
            return _robust(config.beta * margins, config.label_smoothing)
        case "sigmoid" | "sigmoid_norm":
            return _smoothed(config.beta * margins, config.label_smoothing)


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    """As if a share of the preferences were the wrong way round (Mitchell, 2023, "A note on DPO with noisy
    preferences", eq. 3)."""
    if not smoothing:
        return -F.logsigmoid(logits)
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def _robust(logits: Tensor, smoothing: float) -> Tensor:
    """The unbiased loss under that share (Chowdhury et al., 2024, arXiv:2403.00409, eq. 5)."""
    right, wrong = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
