"""Which texts a model is calibrated and evaluated on, as windows of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.report import Report
from corral.engine.sampling.checks import require_whole
from corral.errors import RenderError
from corral.evals.texts import read_rows
from corral.quantizer.calibration import (
    CalibrationOptions,
    calibration_windows,
    fingerprint,
    held_out_windows,
    own_samples,
)
from corral.quantizer.errors import QuantizeError
from corral.text.prompt_format import choose_renderer
from corral.text.rendered import Renderer
from corral.text.tokenizer import check_fits

Tokens = list[list[int]]
OWN_SAMPLES = "the model's own samples"


@dataclass(frozen=True)
class TextSources:
    """Where texts come from.

    Attributes:
        calibration: a file or folder that `corral.evals.texts.read_rows` reads; None stands for the model's
            own samples where the method needs text, and for none where it does not.
        evaluation: the same, for perplexity before and after; None is what calibration leaves over.
        options: how much of the text is taken.
        evaluation_samples: windows for perplexity, of the length of the others; 0 for none.
    """

    calibration: str | None = None
    evaluation: str | None = None
    options: CalibrationOptions = field(default_factory=CalibrationOptions)
    evaluation_samples: int = 16

    def __post_init__(self) -> None:
        require_whole("evaluation_samples", self.evaluation_samples, low=0)


def described(sources: TextSources, needed: bool) -> dict[str, Any]:
    """What is taken from where, without the folders of files: plain data."""
    own = OWN_SAMPLES if needed else None
    return {
        "calibration": own if sources.calibration is None else Path(sources.calibration).name,
        "evaluation": None if sources.evaluation is None else Path(sources.evaluation).name,
        "samples": sources.options.samples,
        "length": sources.options.length,
        "seed": sources.options.seed if sources.calibration is None and needed else None,
        "evaluation_samples": sources.evaluation_samples,
    }


def read_windows(
    sources: TextSources, checkpoint: Checkpoint, *, needed: bool
) -> tuple[Tokens | None, Tokens | None]:
    """The windows that files give; None for those that the model has to write itself, if text is `needed`.

    Raises:
        CorralError: a file cannot be read, or is too short.
    """
    options, count = sources.options, sources.evaluation_samples
    if not needed and sources.calibration is None and sources.evaluation is None:
        return None, None
    tokenizer = checkpoint.tokenizer()
    check_fits(tokenizer, checkpoint.config.vocab_size)
    options.check(checkpoint.config)
    renderer = _renderer(checkpoint)
    calibration: Tokens | None = None
    evaluation: Tokens | None = None
    if sources.calibration is not None:
        rows = read_rows(sources.calibration)
        calibration = calibration_windows(rows, tokenizer, options, renderer)
        if sources.evaluation is None and count:
            evaluation = held_out_windows(rows, tokenizer, options, count, renderer, taken=calibration)
    if sources.evaluation is not None and count:
        rows = read_rows(sources.evaluation)
        evaluation = held_out_windows(rows, tokenizer, options, count, renderer, taken=calibration or ())
        if not evaluation:
            raise QuantizeError(
                f"the evaluation text is too short: it gives no window of {options.length:,} tokens that is "
                "not calibrated on; give more text, or leave it out"
            )
    return calibration, evaluation


def write_windows(
    sources: TextSources,
    model: str,
    evaluation: Tokens | None,
    report: Report,
    progress: Callable[[int, int], None] | None,
    device: str,
    threads: int | None,
) -> tuple[Tokens, Tokens]:
    """Windows that the model writes itself, those for evaluation too unless they are given."""
    options = sources.options
    more = sources.evaluation_samples if evaluation is None else 0
    asked = replace(options, samples=options.samples + more)
    written = own_samples(model, asked, report, progress, device=device, threads=threads)
    return written[: options.samples], written[options.samples :] if evaluation is None else evaluation


def content_of(tokens: Tokens | None) -> str | None:
    """What tells whether windows are the same; None for none yet."""
    return None if tokens is None else fingerprint(tokens)


def _renderer(checkpoint: Checkpoint) -> Renderer | None:
    try:
        return choose_renderer(
            checkpoint.tokenizer(), chat_template=checkpoint.chat_template, family=checkpoint.family
        )
    except RenderError:
        return None
