"""Kahneman-Tversky optimization (Ethayarajh et al., 2024, arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from corral.tune.batch import Batch
from corral.tune.config import KTOConfig
from corral.tune.examples import Example, Item, Rated, joined
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss, Mean
from corral.tune.objectives.pairs import documents_of, floats, rated_of
from corral.tune.reference import ReferencedRated, reference_logprobs

Total = Callable[[Sequence[float]], list[float]]
"""Sums of values over all ranks."""


class KTO:
    """The loss of completions that are desirable or not, summed over them.

    How far the model has gone from its reference is measured on prompts with completions that are not theirs:
    each prompt of the microbatch with the completion before it, the first with the last; or with those that
    items bring along, where their log-probabilities by the reference are known (`ReferencedRated`). The mean,
    at least 0, has no gradient. It is over the microbatch on all ranks: how a step is cut into microbatches
    changes it, as it does in TRL.

    Args:
        config: weights and beta.
        max_length: tokens at which a mismatched prompt and completion are cut.
        total: sums over ranks, as `Ranks.total` of the loop; called once for each microbatch in training, and
            never in evaluation, where ranks may have different numbers of them. A microbatch that a rank only
            repeats takes part in the mean.
    """

    smallest_batch = 2

    def __init__(self, config: KTOConfig, max_length: int | None = None, total: Total = list) -> None:
        self._config, self._max_length, self._total = config, max_length, total

    def collate(self, items: Sequence[Item]) -> Batch:
        return Batch.of(documents_of(rated_of(items)), items)

    def weight(self, batch: Batch) -> int:
        """Completions."""
        return batch.num_documents

    def __call__(self, network: Network, batch: Batch) -> Loss:
        items = rated_of(batch.items)
        divergence = self._divergence(network, items, batch.tokens.device)
        reference = reference_logprobs(network, batch)
        logprobs = batch.by_document(network.token_logprobs(batch))
        ratios = logprobs - reference
        desirable = torch.tensor([item.desirable for item in items], device=ratios.device)
        losses = completion_losses(self._config, ratios, divergence, desirable)
        return Loss(losses.sum(), self._metrics(logprobs, ratios, divergence, desirable))

    def _divergence(self, network: Network, items: Sequence[Rated], device: torch.device) -> Tensor:
        """The mean log-ratio of mismatched completions, at least 0."""
        batch = Batch.of(mismatched(items, self._max_length)).to(device)
        with torch.no_grad():
            logprobs = batch.by_document(network.token_logprobs(batch))
            known = [item.other_logprob for item in items if isinstance(item, ReferencedRated)]
            if known:
                assert len(known) == len(items), "all items bring a reference along, or none does"
                reference = floats(known, device)
            else:
                with network.reference():
                    reference = batch.by_document(network.token_logprobs(batch))
        ratio = (logprobs - reference).sum()
        if not torch.is_grad_enabled():
            return (ratio / len(items)).clamp(min=0)
        total, count = self._total([float(ratio), float(len(items))])
        return floats([max(0.0, total / count)], device).squeeze(0)

    def _metrics(
        self, logprobs: Tensor, ratios: Tensor, divergence: Tensor, desirable: Tensor
    ) -> dict[str, Mean]:
        metrics = {"kl": Mean(divergence, 1)}
        rewards, logprobs = self._config.beta * ratios.detach(), logprobs.detach()
        for name, which in (("chosen", desirable), ("rejected", ~desirable)):
            metrics[f"rewards/{name}"] = Mean(rewards[which].sum(), which.sum())
            metrics[f"logps/{name}"] = Mean(logprobs[which].sum(), which.sum())
        return metrics


def completion_losses(config: KTOConfig, ratios: Tensor, divergence: Tensor, desirable: Tensor) -> Tensor:
    """The loss of each completion (eq. 8 of the paper, and 1 less the value of eq. 7).

    Args:
        ratios: log-probability of each, less that by the reference, [n].
        divergence: the reference point, a scalar.
        desirable: bool [n].
    """
    signs = torch.where(desirable, 1.0, -1.0)
    weights = torch.where(desirable, config.desirable_weight, config.undesirable_weight)
    return weights * torch.sigmoid(-config.beta * signs * (ratios - divergence))


def mismatched(items: Sequence[Rated], max_length: int | None = None) -> list[Example]:
    """Each prompt with a completion that is not its own: one that it brings along, or the one before it."""
    documents = []
    for i, item in enumerate(items):
        other = item.other if isinstance(item, ReferencedRated) else items[i - 1].completion
        room = None if max_length is None else max(0, max_length - len(item.prompt))
        documents.append(joined(item.prompt, other[:room]))
    return documents
