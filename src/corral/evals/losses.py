"""What predicting a text costs a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corral.evals.errors import EvalError
from corral.evals.scorer import Scorer
from corral.evals.statistics import Estimate
from corral.evals.windows import Window

Array = NDArray[np.float64]

_BLOCK = 1 << 21  # log-probabilities at a time: 16 MiB of float64


@dataclass(frozen=True)
class Loss:
    """How well one model predicts the counted tokens of all windows.

    `nll` is the mean over these tokens of the negative natural logarithm of the probability that the model
    gives a token after those before it in its window: nats per token. `num_bytes` is what the tokens take as
    text in UTF-8.
    """

    nll: Estimate
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> Estimate:
        """e to the power of the mean."""
        return self.nll.exp()

    @property
    def bits_per_byte(self) -> float:
        """All tokens' sum in bits, over the bytes of their text: comparable where tokenizers differ."""
        return self.nll.mean * self.num_tokens / float(np.log(2)) / self.num_bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "perplexity": self.perplexity.to_dict(),
            "nll_per_token": self.nll.to_dict(),
            "bits_per_byte": self.bits_per_byte,
        }


def loss_over(windows: Sequence[Window], sums: Sequence[float]) -> Loss:
    """The loss over windows from the sum of negative log-likelihoods over each."""
    counts = [window.num_counted for window in windows]
    num_bytes = sum(window.num_bytes for window in windows)
    return Loss(Estimate.over_windows(sums, counts), sum(counts), num_bytes)


def token_losses(scorer: Scorer, windows: Sequence[Window]) -> Iterator[tuple[list[Window], Array]]:
    """Batch after batch of windows, and the negative log-likelihood of each counted token of it."""
    for batch in scorer.batches(windows):
        values = values_of(batch)
        for place, logits, targets in scored(scorer, batch):
            values[place] = -picked(log_probabilities(logits), targets).cpu().numpy()
        yield batch, values


def values_of(batch: Sequence[Window], *rows: int) -> Array:
    """Room for numbers of a batch: [*rows, counted tokens].

    It is filled piece by piece: small pieces, kept between large scores that come and go, would leave holes
    in the heap that come to several times the scores.
    """
    return np.empty((*rows, sum(window.num_counted for window in batch)))


def scored(scorer: Scorer, batch: Sequence[Window]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """So many tokens at a time that what is computed of them stays small: where they are among the batch's
    counted ones, the scores [rows, vocab_size] that predict them, and their ids [rows]."""
    targets = torch.tensor([token for window in batch for token in window.counted])
    start = 0
    for logits in scorer.logits(batch):
        step = max(1, _BLOCK // logits.shape[1])
        for first in range(0, len(logits), step):
            rows = logits[first : first + step]
            place = slice(start, start + len(rows))
            yield place, rows, targets[place].to(rows.device)
            start = place.stop
    assert start == len(targets), "each counted token has its scores"


def log_probabilities(logits: Tensor) -> Tensor:
    """Natural logarithms of the probabilities, float64: what two good models differ by is lost in float32."""
    return torch.log_softmax(logits, dim=1, dtype=torch.float64)


def picked(rows: Tensor, targets: Tensor) -> Tensor:
    """Of each row [rows, vocab_size] the target's number: [rows]."""
    return rows.gather(1, targets[:, None])[:, 0]


def window_sums(batch: Sequence[Window], values: Array) -> list[float]:
    """The sum of the tokens' values over each window of a batch."""
    ends = np.cumsum([0, *(window.num_counted for window in batch)])
    return [float(values[start:end].sum()) for start, end in pairwise(ends)]


def require_finite(model: str, values: Array) -> None:
    """Raises EvalError where a model's scores are no numbers."""
    if not np.isfinite(values).all():
        raise EvalError(
            f"{model} gives scores that are not finite; its weights are damaged, or too large for their type"
        )
