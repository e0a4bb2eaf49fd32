"""What one model's predictions differ by from another's: what a quantization, a type or a kernel costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corral.checkpoints.report import Report, silent
from corral.devices import memory_in_words
from corral.evals.errors import EvalError
from corral.evals.losses import (
    Array,
    Loss,
    log_probabilities,
    loss_over,
    picked,
    require_finite,
    scored,
    values_of,
    window_sums,
)
from corral.evals.perplexity import Progress, Reading
from corral.evals.scorer import ModelSetup, Scorer, TextModel
from corral.evals.statistics import Estimate
from corral.evals.windows import WHOLE, Window, WindowOptions, windows_of
from corral.text.tokenizer import first_difference

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Divergence:
    """The Kullback-Leibler divergence KL(reference || candidate) of the next token's distributions, in nats.

    At each counted token it is the sum over the vocabulary of p * (ln p - ln q), p being the reference's
    probabilities and q the candidate's. `percentiles` are over the counted tokens, interpolated linearly.
    """

    mean: Estimate
    percentiles: dict[float, float]
    maximum: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        named = {f"p{percent:g}": value for percent, value in self.percentiles.items()}
        return {**self.mean.to_dict(), **named, "max": self.maximum}


@dataclass(frozen=True)
class ComparisonResult:
    """Two models over the same windows.

    Attributes:
        reference_setup, candidate_setup: how they were run.
        reference, candidate: how well each predicts the text.
        divergence: of the candidate from the reference.
        top1_agreement: the share of the counted tokens at which both hold the same token for the likeliest, 0
            to 1. Of equally likely ones it is that of the lowest id, as in greedy decoding.
        nll_difference: candidate minus reference, in nats per token, paired token by token: what both find
            hard falls out of its error.
        reading: what was read; its speed is that of both together.
    """

    reference_setup: ModelSetup
    candidate_setup: ModelSetup
    reference: Loss
    candidate: Loss
    divergence: Divergence
    top1_agreement: Estimate
    nll_difference: Estimate
    reading: Reading

    @property
    def perplexity_ratio(self) -> Estimate:
        """The candidate's perplexity over the reference's."""
        return self.nll_difference.exp()

    def to_dict(self) -> dict[str, Any]:
        """As plain data, as `corral compare --json` prints it."""
        return {
            "reference": {**self.reference_setup.to_dict(), **self.reference.to_dict()},
            "candidate": {**self.candidate_setup.to_dict(), **self.candidate.to_dict()},
            "kl_divergence": self.divergence.to_dict(),
            "top1_agreement": self.top1_agreement.to_dict(),
            "nll_difference": self.nll_difference.to_dict(),
            "perplexity_ratio": self.perplexity_ratio.to_dict(),
            "tokens": self.reference.num_tokens,
            "bytes": self.reference.num_bytes,
            **self.reading.to_dict(),
        }


def compare(
    reference: ModelSetup,
    candidate: ModelSetup,
    texts: Iterable[str],
    options: WindowOptions = WHOLE,
    *,
    report: Report = silent,
    progress: Progress | None = None,
) -> ComparisonResult:
    """Runs two models over the same tokens and compares what they expect next.

    The windows are cut as for `corral.evals.perplexity`, with the reference's tokenizer. Both models are in
    memory together; of their scores only those of some rows are, whatever the length of the text.

    Raises:
        EvalError: the vocabularies differ, there is nothing to count, or a model's scores are no numbers.
        CorralError: a model cannot be found, read or run as asked; the message says why.
    """
    models = [TextModel(setup, report) for setup in (reference, candidate)]
    context, stride = options.fitted(min(model.config.max_position_embeddings for model in models))
    for model in models:
        model.check(context)
    _require_same_vocabulary(*models)
    windows = windows_of(texts, models[0].tokenizer, context, stride, options.tokens)
    total, parts, sums, done = sum(window.num_counted for window in windows), list[Array](), list[Array](), 0
    with memory_in_words(reference.place):
        scorers = [model.load(context) for model in models]
        begun = time.perf_counter()
        for batch in scorers[0].batches(windows, scorers[1].room):
            values = _values(scorers, batch)
            require_finite(str(reference.model), values[0])
            require_finite(str(candidate.model), values[1:])
            sums.append(np.array([window_sums(batch, row) for row in values]))
            parts.append(values[2])
            done += len(values[2])
            if progress is not None:
                progress(done, total)
    reading = Reading.of(windows, context, stride, time.perf_counter() - begun)
    return _result(reference, candidate, windows, np.concatenate(sums, 1), np.concatenate(parts), reading)


def _values(scorers: Sequence[Scorer], batch: Sequence[Window]) -> Array:
    """[4, counted tokens]: negative log-likelihoods of both models, KL divergence, and 1 where they agree."""
    values = values_of(batch, 4)
    both = zip(*(scored(scorer, batch) for scorer in scorers), strict=True)
    for (place, a, targets), (_, b, _) in both:
        values[:, place] = _compared(a, b, targets).cpu().numpy()
    return values


def _compared(a: Tensor, b: Tensor, targets: Tensor) -> Tensor:
    """[4, rows] of both models' scores [rows, vocab_size] and the tokens that came [rows]."""
    b = b.to(a.device)
    log_p, log_q = log_probabilities(a), log_probabilities(b)
    likelihoods = [-picked(log_p, targets), -picked(log_q, targets)]
    divergence = (log_p.exp() * log_q.neg_().add_(log_p)).sum(dim=1)
    agree = a.argmax(dim=1) == b.argmax(dim=1)  # the first of equal ones
    return torch.stack([*likelihoods, divergence.clamp_min(0), agree.double()])  # below 0 there is rounding


def _result(
    reference: ModelSetup,
    candidate: ModelSetup,
    windows: Sequence[Window],
    sums: Array,
    divergence: Array,
    reading: Reading,
) -> ComparisonResult:
    """From the sums of what `_values` gives over the windows [4, windows], and each token's divergence."""
    counts = [window.num_counted for window in windows]
    p_sums, q_sums, kl_sums, agree_sums = sums
    points = np.percentile(divergence, PERCENTILES).tolist()
    return ComparisonResult(
        reference_setup=reference,
        candidate_setup=candidate,
        reference=loss_over(windows, p_sums),
        candidate=loss_over(windows, q_sums),
        divergence=Divergence(
            Estimate.over_windows(kl_sums, counts),
            dict(zip(PERCENTILES, points, strict=True)),
            float(divergence.max()),
        ),
        top1_agreement=Estimate.over_windows(agree_sums, counts),
        nll_difference=Estimate.over_windows(q_sums - p_sums, counts),
        reading=reading,
    )


def _require_same_vocabulary(reference: TextModel, candidate: TextModel) -> None:
    """Refuses models whose scores are not of the same tokens."""
    ours, theirs = reference.tokenizer, candidate.tokenizer
    size, other = reference.config.vocab_size, candidate.config.vocab_size
    if size != other:
        differs = f"the first scores {size:,} tokens and the second {other:,}"
    elif (token := first_difference(ours, theirs)) is not None:
        differs = f"token {token} is {ours.decode([token])!r} in the first and {theirs.decode([token])!r} "
        differs += "in the second"
    else:
        return
    raise EvalError(
        f"{reference.setup.model} and {candidate.setup.model} have different vocabularies: {differs}; "
        "take the perplexity of each instead, and compare their bits per byte"
    )
