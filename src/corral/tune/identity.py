"""What makes a run the one it is: a checkpoint of another is not gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from corral.tune.config import RunConfig
from corral.tune.matching import differences, in_words

MAY_CHANGE = (
    "output",
    "model",  # where it lies; the fingerprint of its files counts
    "data.train",  # likewise
    "data.eval",
    "epochs",  # a run may be made longer
    "max_steps",
    "checkpoints",
    "evaluation",
    "logging",
    "compute.device",
    "compute.threads",
    "compute.checkpointing",
    "compute.compile",
    "compute.loss_chunk",
    "compute.check_memory",
)
"""Settings that a run may go on with otherwise than it began: they do not change what is computed, or say how
long."""

_SAMPLE = 2**20  # bytes that are read at both ends of a file


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that have to stay as they are, as plain data."""
    settings = config.to_dict()
    for key in MAY_CHANGE:
        *sections, name = key.split(".")
        section = settings
        for inner in sections:
            section = section[inner]
        del section[name]
    return settings


def identity_of(config: RunConfig, model: str, data: str, processes: int = 1) -> dict[str, Any]:
    """What has to be the same where a run goes on.

    Args:
        config: its settings.
        model: the fingerprint of the model's files.
        data: the hash of its rows, as they are trained on.
        processes: how many train together.
    """
    return {
        "weights of the model": model,
        "rows of the data": data,
        "number of processes": processes,
        **settings_of(config),
    }


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of names, sizes, and both ends of files: in the header and the weights there, models differ.

    It is the same wherever the files lie, and takes no time with many gigabytes. 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(json.dumps([file.name, size]).encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLE))
            content.seek(max(0, size - _SAMPLE))
            digest.update(content.read(_SAMPLE))
    return digest.hexdigest()[:16]


def what_differs(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, up to three things that differ between identities or settings; empty where none does."""
    found = [in_words(difference) for difference in differences(kept, json.loads(json.dumps(now)))]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
