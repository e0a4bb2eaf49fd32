"""From a configuration to items, made once for all processes of a machine, and mixed."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corral.checkpoints.cache import sweep
from corral.checkpoints.report import Report, silent
from corral.text.rendered import Renderer
from corral.text.tokenizer import Tokenizer
from corral.tune.config import DataConfig
from corral.tune.data.identity import store_name
from corral.tune.data.making import Maker, Parts
from corral.tune.data.mixture import Indices, held_out, repeated
from corral.tune.data.places import find_places
from corral.tune.data.render import Writer
from corral.tune.data.report import DataReport, LengthReport, SourceReport
from corral.tune.data.store import ItemStore, StoredItems
from corral.tune.errors import TuneError

_USUAL_LENGTH = 2048


@dataclass(frozen=True)
class Prepared:
    """What a run trains on and is evaluated on, and what became of the rows.

    Attributes:
        max_length: tokens of a document, at most.
    """

    train: ItemStore
    eval: ItemStore | None
    report: DataReport
    max_length: int


def prepare(
    config: DataConfig,
    kind: str,
    tokenizer: Tokenizer,
    renderer: Renderer | None,
    context: int,
    cache: Path,
    report: Report = silent,
    *,
    seed: int = 0,
) -> Prepared:
    """The rows of a configuration as items of an objective.

    Tokens are kept in a folder of `cache` by what they depend on, so that they are made once: another process
    that wants the same waits for the first, and the next start takes them as they are.

    Args:
        config: which rows, and which of their tokens.
        kind: the objective: "sft" and "pretrain" give `Example`, "dpo", "orpo" and "reward" `Pair`, "kto"
            `Rated`.
        tokenizer: the model's.
        renderer: the model's prompt format, with `config.prompt_format`; None where it has none.
        context: tokens that the model can see.
        cache: the folder of such folders.
        report: told of downloads and of progress.
        seed: of the rows that a weight draws.

    Raises:
        TuneError: a row, a column or a setting is wrong, or nothing is left to train on.
        ResolveError: a data set on the Hub that cannot be had.
        CheckpointError: the cache cannot be written.
    """
    if config.eval is not None and config.eval_fraction:
        raise TuneError("eval and eval_fraction are both given; leave one of them out")
    max_length = _max_length(config, context)
    train, evaluation = find_places(config, report)
    parts = [*(("train", place) for place in train), *(("eval", place) for place in evaluation)]
    name = store_name(parts, config, kind, max_length, tokenizer, renderer)
    folder = cache / name
    if not folder.is_dir():
        with _alone(cache, name, report):
            if not folder.is_dir():
                Maker(config, kind, max_length, Writer(kind, config, tokenizer, renderer), report).make(
                    folder, parts
                )
    return _opened(folder, parts, config, kind, max_length, seed)


def _max_length(config: DataConfig, context: int) -> int:
    if config.max_length is None:
        return min(context, _USUAL_LENGTH)
    if config.max_length > context:
        raise TuneError(f"max_length is {config.max_length:,}, but the model's context is {context:,} tokens")
    return config.max_length


@contextmanager
def _alone(cache: Path, name: str, report: Report) -> Iterator[None]:
    """The one process of the machine that makes a folder; others wait here. What a killed one left goes."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / f".{name}.lock").open("w")
    except OSError as error:
        raise TuneError(f"the cache cannot be written at {cache}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.notice("Another process prepares the same data; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            raise TuneError(f"{cache} cannot be locked ({error.strerror}); choose another cache") from None
        for left in cache.glob(f".{name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        sweep(cache.glob(".*.partial"))
        yield


def _opened(
    folder: Path, parts: Parts, config: DataConfig, kind: str, max_length: int, seed: int
) -> Prepared:
    stored = StoredItems(folder)
    of_train = np.isin(stored.sources, [i for i, (part, _) in enumerate(parts) if part == "train"])
    apart = ~of_train
    if config.eval_fraction:
        apart = held_out(stored.prompts, config.eval_fraction)
    train = ItemStore(stored, _mixed(stored, parts, ~apart, seed))
    held = ItemStore(stored, np.flatnonzero(apart)) if apart.any() else None
    unique = np.unique(stored.content[~apart])
    counted = DataReport(
        kind=kind,
        max_length=max_length,
        sources=tuple(SourceReport(**fields) for fields in stored.meta["sources"]),
        train=LengthReport.of(train.lengths, train.num_trained),
        eval=None if held is None else LengthReport.of(held.lengths, held.num_trained),
        duplicates=int((~apart).sum()) - len(unique),
        shared=int(np.isin(stored.content[apart], unique).sum()),
    )
    return Prepared(train, held, counted, max_length)


def _mixed(stored: StoredItems, parts: Parts, kept: NDArray[np.bool_], seed: int) -> Indices:
    """The items for training, source by source, each as often as its weight says."""
    mixed = []
    for index, (part, place) in enumerate(parts):
        own = np.flatnonzero(kept & (stored.sources == index))
        if part == "train" and len(own):
            mixed.append(own[repeated(len(own), place.source.weight, [seed, index])])
    return np.concatenate(mixed)
