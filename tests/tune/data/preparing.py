"""A process that prepares data: `python -m tests.tune.data.preparing ROWS CACHE [READY GO]`.

With READY and GO it says that it is ready by making the one file, and begins when there is the other. It
prints one line: how often it told its progress, the hash of the items, and how many there are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from corral.text.hf_tokenizer import from_json
from corral.tune.config import DataConfig
from corral.tune.data.prepare import prepare
from tests.text.vocabularies import chatml_tokenizer_json


class CountingReport:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def notice(self, text: str) -> None:
        print(text, file=sys.stderr)  # noqa: T201

    def progress(self, description: str, done: int, total: int | None) -> None:
        self.told += 1


def main(rows: str, cache: str, *signals: str) -> None:
    tokenizer = from_json(chatml_tokenizer_json(), {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    if signals:
        ready, go = map(Path, signals)
        ready.touch()
        while not go.exists():
            time.sleep(0.005)
    report = CountingReport()
    prepared = prepare(DataConfig(train=rows), "sft", tokenizer, None, 4096, Path(cache), report)
    print(report.told, prepared.train.fingerprint, len(prepared.train))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
