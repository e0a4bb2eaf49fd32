"""Quantizes a model layer by layer, and writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import corral
from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.names import find_local
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.devices import parse_dtype, pick_device
from corral.engine.sampling.checks import require_whole
from corral.quantizer.layer_loop import LayerLoop
from corral.quantizer.layers import LayerReader
from corral.quantizer.recipe import Recipe
from corral.quantizer.result import QuantizeResult
from corral.quantizer.texts import TextSources, content_of, described, read_windows, write_windows
from corral.quantizer.work import Tokens, Work
from corral.quantizer.writing import Writer, check_out

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how much of it is."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How a quantization runs.

    Attributes:
        dtype: of what is not quantized: "float32", "bfloat16", "float16", or "auto" for the checkpoint's.
        device: "cpu", "cuda" or "auto".
        threads: of PyTorch on a CPU; None leaves them.
        restart: forget what an earlier run has finished.
    """

    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None:
            require_whole("threads", self.threads, low=1, high=1024)


_FLOATS = ("f64", "f32", "f16", "bf16", "float64", "float32", "float16", "bfloat16")  # as readers name them

NO_SOURCES, DEFAULTS = TextSources(), QuantizeOptions()


def quantize(
    model: str,
    out: Path,
    recipe: Recipe,
    sources: TextSources = NO_SOURCES,
    options: QuantizeOptions = DEFAULTS,
    report: Report = silent,
    progress: Progress = lambda *_: None,
) -> QuantizeResult:
    """Writes a quantized copy of a model: a Hugging Face folder, or a .gguf file.

    Only one layer is in memory at a time, besides the hidden states of the texts. Layers that are finished
    are kept in a folder beside `out`: after a kill the same call goes on from there, and gives the same
    bytes.

    Raises:
        CorralError: the model, a text or the recipe cannot be used, or `out` cannot be written; the message
            says why. Nothing is at `out` then.
    """
    check_out(out, recipe)
    wanted = None if options.dtype == "auto" else parse_dtype(options.dtype)
    checkpoint = open_model(model, report)
    _tell_of_losses(checkpoint, report)
    stored = wanted or getattr(torch, checkpoint.config.dtype)
    reader = LayerReader(checkpoint, pick_device(options.device))
    matrices = reader.matrices().items()
    recipe.check({name: shape for name, shape in matrices if recipe.takes(name, checkpoint.config)})
    given = read_windows(sources, checkpoint, needed=recipe.needs_text)
    settings = _settings(checkpoint, recipe, stored, sources, given)
    with Work(out, settings, restart=options.restart) as work, _threads(options.threads), torch.no_grad():
        if work.num_finished:
            report.notice(f"{out}: {work.num_finished} layers are finished; going on from there")
        tokens = _windows(work, model, recipe, sources, given, options, report, progress)
        loop = LayerLoop(reader, recipe, stored, work, lambda done, total: progress("matrices", done, total))
        layers, perplexities = loop.run(*tokens)
        writer = Writer(checkpoint, reader, loop, work, recipe, stored)
        texts = described(sources, recipe.needs_text)
        sizes = (2 * checkpoint.config.num_parameters, writer.num_bytes)
        local = find_local(model)  # whose folder is nobody else's business
        name = model if local is None else local.resolve().name
        result = QuantizeResult(name, recipe, corral.__version__, texts, layers, perplexities, sizes)
        if recipe.format == "gguf":
            writer.gguf(out, report)
            result = replace(result, num_bytes=(sizes[0], out.stat().st_size))
        else:
            writer.folder(out, result)
        work.remove()
    return result


def _tell_of_losses(checkpoint: Checkpoint, report: Report) -> None:
    quantized = sorted(kind for kind in checkpoint.storage if kind.lower() not in _FLOATS)
    if quantized:
        report.notice(
            f"{checkpoint.path} is quantized already ({', '.join(quantized)}): what that has lost stays lost"
        )


def _windows(
    work: Work,
    model: str,
    recipe: Recipe,
    sources: TextSources,
    given: tuple[Tokens | None, Tokens | None],
    options: QuantizeOptions,
    report: Report,
    progress: Progress,
) -> tuple[Tokens, Tokens]:
    """Windows for calibration and for evaluation; those that the model writes are kept for the next time."""
    calibration, evaluation = given
    if calibration is not None or not recipe.needs_text:
        return calibration or [], evaluation or []
    kept = work.tokens()
    if kept is None:
        kept = write_windows(
            sources,
            model,
            evaluation,
            report,
            lambda done, total: progress("samples", done, total),
            options.device,
            options.threads,
        )
        work.keep_tokens(*kept)
    return kept


def _settings(
    checkpoint: Checkpoint,
    recipe: Recipe,
    stored: torch.dtype,
    sources: TextSources,
    given: tuple[Tokens | None, Tokens | None],
) -> dict[str, Any]:
    """All that decides what is written; the names of the entries are those of errors."""
    files = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in checkpoint.files]
    return {
        "model": files,
        "version of Corral": corral.__version__,
        **recipe.to_dict(),
        "dtype": str(stored).removeprefix("torch."),
        "text": [described(sources, recipe.needs_text), *map(content_of, given)],
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
