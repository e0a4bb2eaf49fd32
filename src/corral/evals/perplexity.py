"""How well a model predicts texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from corral.checkpoints.report import Report, silent
from corral.devices import memory_in_words
from corral.evals.losses import Loss, loss_over, require_finite, token_losses, window_sums
from corral.evals.scorer import ModelSetup, TextModel
from corral.evals.windows import WHOLE, Window, WindowOptions, windows_of

Progress = Callable[[int, int], None]
"""Told how many tokens have been counted, and of how many."""


@dataclass(frozen=True)
class Reading:
    """What was read, and how fast.

    Attributes:
        windows: how many.
        context, stride: how the texts were cut into them, in tokens.
        run_tokens: what a model ran; those in which windows overlap are run again in each.
        seconds: what this took, with all that was computed of it, but without loading.
    """

    windows: int
    context: int
    stride: int
    run_tokens: int
    seconds: float

    @classmethod
    def of(cls, windows: Sequence[Window], context: int, stride: int, seconds: float) -> Reading:
        """What windows come to. Nothing is predicted from the last token of one, so that it is not run."""
        return cls(len(windows), context, stride, sum(map(len, windows)) - len(windows), seconds)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**vars(self), "tokens_per_second": self.run_tokens / self.seconds}


@dataclass(frozen=True)
class PerplexityResult:
    """How well a model, run as `setup` says, predicts texts."""

    setup: ModelSetup
    loss: Loss
    reading: Reading

    def to_dict(self) -> dict[str, Any]:
        """As plain data, as `corral perplexity --json` prints it."""
        counted = {"tokens": self.loss.num_tokens, "bytes": self.loss.num_bytes}
        return {**self.setup.to_dict(), **self.loss.to_dict(), **counted, **self.reading.to_dict()}


def perplexity(
    setup: ModelSetup,
    texts: Iterable[str],
    options: WindowOptions = WHOLE,
    *,
    report: Report = silent,
    progress: Progress | None = None,
) -> PerplexityResult:
    """How well a model predicts texts, window by window.

    The perplexity is e to the power of the mean negative log-likelihood: the mean of -ln P(token | the tokens
    before it in its window) over all tokens that count; see `corral.evals.windows.cut` for which do. Each
    counts alike, whichever text it is of. Of the texts only the token ids are kept, and of the scores only
    those of some rows.

    Raises:
        EvalError: there is nothing to count, or the model's scores are no numbers.
        CorralError: the model cannot be found, read or run as asked; the message says why.
    """
    model = TextModel(setup, report)
    context, stride = options.fitted(model.config.max_position_embeddings)
    model.check(context)
    windows = windows_of(texts, model.tokenizer, context, stride, options.tokens)
    total, sums, done = sum(window.num_counted for window in windows), list[float](), 0
    with memory_in_words(setup.place):
        scorer = model.load(context)
        begun = time.perf_counter()
        for batch, values in token_losses(scorer, windows):
            require_finite(str(setup.model), values)
            sums += window_sums(batch, values)
            done += len(values)
            if progress is not None:
                progress(done, total)
    seconds = time.perf_counter() - begun
    return PerplexityResult(setup, loss_over(windows, sums), Reading.of(windows, context, stride, seconds))
