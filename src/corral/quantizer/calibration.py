"""The tokens that a model is calibrated on: windows of texts, or what the model itself writes.

AutoAWQ joins all texts and cuts them into blocks; llm-compressor takes one beginning of each. Here texts are
joined, so that nothing of a short one is lost and every window is full, and windows are taken from all over
the source rather than from its beginning. A model's own samples need no text at all (LLM-QAT, Liu et al.,
2023, arXiv:2305.17888, section 2.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from corral.checkpoints.report import Report, silent
from corral.engine.outputs import Collector
from corral.engine.sampling.checks import require_whole
from corral.engine.sampling.params import SamplingParams
from corral.errors import RenderError, RequestError
from corral.evals.texts import Row
from corral.llm import LLM
from corral.model.config import LlamaConfig
from corral.quantizer.errors import QuantizeError
from corral.text.messages import as_messages
from corral.text.rendered import Renderer, RenderOptions
from corral.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Told how many tokens of how many there are."""

_END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>", "</s>")
"""Ends of texts, by their names: the `eos_id` of a chat model may be the end of a message instead."""

_CHOICE, _FEWEST = 8, 1024
"""Of so many times the windows that are asked for, and so many at least, they are chosen; a longer source is
thinned to that."""

_CHARS_PER_TOKEN = 4  # of English and a vocabulary of 32,000 to 128,000 tokens; it bounds work, nothing else


@dataclass(frozen=True)
class CalibrationOptions:
    """How much a model is calibrated on.

    Attributes:
        samples: windows.
        length: tokens of each, a begin-of-text token included.
        seed: of the model's own samples; windows of a text are not drawn.

    Raises:
        RequestError: a value is out of range; the message names the field.
    """

    samples: int = 128
    length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("samples", self.samples, low=1)
        require_whole("length", self.length, low=2)
        require_whole("seed", self.seed, low=0, high=2**64 - 1)

    def check(self, config: LlamaConfig) -> None:
        """Raises RequestError where the windows are longer than a model's context."""
        longest = config.max_position_embeddings
        if self.length > longest:
            raise RequestError(f"length is {self.length:,}, but the model's context is {longest:,} tokens")


def calibration_windows(
    rows: Sequence[Row], tokenizer: Tokenizer, options: CalibrationOptions, renderer: Renderer | None = None
) -> list[list[int]]:
    """`options.samples` windows of `options.length` tokens each, spread evenly over texts and dialogs.

    Rows are joined and cut into windows that do not overlap; each begins with the begin-of-text token where
    the vocabulary wants one. An end-of-text token follows each text. `renderer` writes dialogs as tokens.

    Raises:
        QuantizeError: there is too little text, or a dialog for a model that has no prompt format or whose
            format has no place for it.
    """
    windows = _windows(rows, tokenizer, options, renderer)
    if len(windows) < options.samples:
        raise QuantizeError(
            f"the calibration text is too short: it gives {len(windows):,} windows of {options.length:,} "
            f"tokens, and samples is {options.samples:,}; give more text, or ask for fewer or shorter samples"
        )
    return _spread(windows, options.samples)


def held_out_windows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    options: CalibrationOptions,
    count: int,
    renderer: Renderer | None = None,
    *,
    taken: Iterable[Sequence[int]] = (),
) -> list[list[int]]:
    """Up to `count` windows for evaluation, none of them equal to one of `taken`, spread evenly.

    Of the rows that the windows for calibration came from, given as `taken`, these are others that overlap
    with none of them. There may be none.

    Raises:
        QuantizeError: as `calibration_windows`, but for too little text.
    """
    known = {tuple(window) for window in taken}
    windows = [w for w in _windows(rows, tokenizer, options, renderer) if tuple(w) not in known]
    return _spread(windows, min(count, len(windows)))


def own_samples(
    model: str,
    options: CalibrationOptions,
    report: Report = silent,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> list[list[int]]:
    """`options.samples` texts of `options.length` tokens each that a model writes at temperature 1.

    Each begins with the begin-of-text token, or the end-of-text token where there is none, and goes on after
    the end of a text. The same seed gives the same tokens on the same machine. The model is closed after.

    Raises:
        CorralError: the model cannot be run.
        QuantizeError: the vocabulary names no token to begin with.
    """
    seeds = np.random.SeedSequence(options.seed).generate_state(options.samples, np.uint64)
    total = options.samples * (options.length - 1)
    samples: list[list[int]] = []
    with LLM(model, device=device, threads=threads, max_model_len=options.length, report=report) as llm:
        start = _first_token(llm.tokenizer)
        together = llm.engine.config.max_num_seqs
        for first in range(0, options.samples, together):  # all have one length, and so end together
            params = [_own_params(int(seed), options) for seed in seeds[first : first + together]]
            handles = [llm.engine.submit(llm.request((start,), each)) for each in params]
            for handle in handles:
                collector = Collector((start,), None)
                for event in handle:
                    collector.add(event)
                    if progress is not None:
                        progress(llm.engine.stats().counters.generated_tokens, total)
                samples.append([start, *_written(collector, options)])
    return samples


def fingerprint(windows: Iterable[Sequence[int]]) -> str:
    """What tells whether windows are the same: the SHA-256 of their lengths and tokens, in hexadecimal."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(np.asarray([len(window), *window], "<i8").tobytes())
    return digest.hexdigest()


def _windows(
    rows: Sequence[Row], tokenizer: Tokenizer, options: CalibrationOptions, renderer: Renderer | None
) -> list[list[int]]:
    start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    token = _end_of_text(tokenizer)
    end = [] if token is None else [token]
    documents: list[list[int]] = []
    for number, row, ends in _thinned(rows, options):
        if isinstance(row, str):
            documents.append(tokenizer.encode(row, first=True) + (end if row and ends else []))
        elif row:
            documents.append(_dialog(row, number, renderer, start))
    return list(_packed(documents, options.length, start))


def _packed(documents: Iterable[Sequence[int]], length: int, start: Sequence[int]) -> Iterator[list[int]]:
    """Documents one after another in windows of `length` tokens; a last one that is not full is left out.

    `start` stands before each document, and before what of one is in the next window.
    """
    window = [*start]
    for document in documents:
        if len(window) + len(start) >= length:
            yield [*window, *start][:length]
            window = [*start]
        elif len(window) > len(start):
            window += start
        ids = list(document)
        at = 0
        while len(ids) - at >= (room := length - len(window)):
            yield [*window, *ids[at : at + room]]
            window, at = [*start], at + room
        window += ids[at:]


def _dialog(row: list[Any], number: int, renderer: Renderer | None, start: Sequence[int]) -> list[int]:
    """A dialog as tokens, without those that every document begins with."""
    if renderer is None:
        raise QuantizeError(
            f"row {number} of the calibration text holds messages, and the model has no prompt format to "
            "write them in; give text"
        )
    options = RenderOptions(add_generation_prompt=False)
    try:
        tokens = list(renderer.render(as_messages(row), (), options).tokens)
    except RenderError as error:
        raise QuantizeError(f"row {number} of the calibration text: {error}") from None
    return tokens[len(start) :] if start and tokens[: len(start)] == start else tokens


def _thinned(rows: Sequence[Row], options: CalibrationOptions) -> Iterator[tuple[int, Row, bool]]:
    """Rows by their numbers, and whether each is there to its end.

    Of a source that is much larger than what is wanted, pieces that are spread evenly over it: tokenizing all
    of it would take long.
    """
    most = max(_CHOICE * options.samples, _FEWEST) * options.length * _CHARS_PER_TOKEN
    total = sum(map(_size, rows))
    if total <= most:
        yield from ((number, row, True) for number, row in enumerate(rows, 1))
        return
    seen = kept = 0
    for number, row, ends in _pieces(rows, 4 * options.length * _CHARS_PER_TOKEN):
        if kept * total <= seen * most:
            yield number, row, ends
            kept += _size(row)
        seen += _size(row)


def _pieces(rows: Sequence[Row], size: int) -> Iterator[tuple[int, Row, bool]]:
    """Dialogs, and texts in pieces of about `size` characters that end with a space where there is one."""
    for number, row in enumerate(rows, 1):
        at = 0
        while isinstance(row, str) and len(row) - at > size:
            end = row.rfind(" ", at, at + size) + 1 or at + size
            yield number, row[at:end], False
            at = end
        yield number, row[at:], True


def _size(row: Row) -> int:
    """Characters of a text or of what the messages of a dialog say."""
    return len(row) if isinstance(row, str) else sum(len(str(message.get("content"))) for message in row)


def _spread(windows: Sequence[list[int]], count: int) -> list[list[int]]:
    return [windows[i * len(windows) // count] for i in range(count)]


def _end_of_text(tokenizer: Tokenizer) -> int | None:
    named = (tokenizer.control[name] for name in _END_OF_TEXT if name in tokenizer.control)
    return next(named, tokenizer.eos_id)


def _first_token(tokenizer: Tokenizer) -> int:
    token = tokenizer.bos_id if tokenizer.adds_bos else _end_of_text(tokenizer)
    token = tokenizer.bos_id if token is None else token
    if token is None:
        raise QuantizeError(
            "the model cannot write samples of its own: its tokenizer names no token that begins or ends a "
            "text; give a calibration text"
        )
    return token


def _own_params(seed: int, options: CalibrationOptions) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=seed, max_tokens=options.length - 1, ignore_eos=True)


def _written(collector: Collector, options: CalibrationOptions) -> Sequence[int]:
    (output,) = collector.result().outputs
    if len(output.token_ids) != options.length - 1:
        said = output.error or f"it ended after {len(output.token_ids)} tokens ({output.finish_reason})"
        raise QuantizeError(f"the model could not write a sample of its own: {said}")
    return output.token_ids
