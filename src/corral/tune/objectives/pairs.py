"""What objectives of preferences share: the documents of pairs side by side, and their measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from corral.tune.examples import Example, Item, Pair, Rated
from corral.tune.objectives.objective import Mean


def pairs_of(items: Sequence[Item]) -> list[Pair]:
    """The items, all of which are pairs."""
    pairs = [item for item in items if isinstance(item, Pair)]
    assert len(pairs) == len(items), "preferences come as pairs"
    return pairs


def rated_of(items: Sequence[Item]) -> list[Rated]:
    """The items, all of which are rated completions."""
    rated = [item for item in items if isinstance(item, Rated)]
    assert len(rated) == len(items), "rated completions come one by one"
    return rated


def documents_of(items: Sequence[Item]) -> list[Example]:
    """One row of documents for pairs: chosen, rejected, chosen, rejected, …; or for rated completions."""
    documents: list[Example] = []
    for item in items:
        if isinstance(item, Pair):
            documents += (item.chosen, item.rejected)
        else:
            documents.append(item.example if isinstance(item, Rated) else item)
    return documents


def chosen_and_rejected(values: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the chosen and of the rejected, [n] each, of values [2n] of the documents of n pairs."""
    chosen, rejected = values.view(-1, 2).unbind(1)
    return chosen, rejected


def preference_metrics(chosen: Tensor, rejected: Tensor, rewards: Tensor) -> Mapping[str, Mean]:
    """Measures by the names that TRL gives them.

    Args:
        chosen, rejected: log-probabilities [n] of completions.
        rewards: [2, n] of the chosen and the rejected.
    """
    n = len(chosen)
    better, worse = rewards.detach()
    return {
        "rewards/chosen": Mean(better.sum(), n),
        "rewards/rejected": Mean(worse.sum(), n),
        "rewards/accuracies": Mean((better > worse).sum(), n),
        "rewards/margins": Mean((better - worse).sum(), n),
        "logps/chosen": Mean(chosen.detach().sum(), n),
        "logps/rejected": Mean(rejected.detach().sum(), n),
    }


def floats(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor [n]."""
    return torch.tensor(values, dtype=torch.float32, device=device)
