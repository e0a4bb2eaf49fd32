"""Listening to `huggingface_hub` while it downloads: its bytes are counted, its own bars are not shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class Counter:
    """Adds up the bytes of several files and tells `tell` the sum."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        self._tell(self._done)


def bar_class(counter: Counter) -> type[Bar]:
    """A class to hand to `huggingface_hub` as `tqdm_class`, whose bars feed `counter`."""
    return type("CountingBar", (Bar,), {"counter": counter})


class Bar:
    """The part of tqdm's interface that `huggingface_hub` uses for a download."""

    counter: ClassVar[Counter]

    def __init__(self, *args: object, total: int | None = None, **options: object) -> None:
        del args, options
        self.n = 0
        self.total = total

    def update(self, count: int = 1) -> None:
        """`count` more bytes of the file are on the disk; negative when a transfer starts over."""
        self.n += count
        self.counter.add(count)

    def update_transfer(self, count: int) -> None:
        """Bytes on the wire, which we do not show: `update` hears of the same bytes once they are written."""

    def set_description(self, *args: object, **options: object) -> None: ...

    def set_postfix_str(self, *args: object, **options: object) -> None: ...

    def set_transfer_postfix_str(self, *args: object, **options: object) -> None: ...

    def refresh(self, *args: object, **options: object) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def quiet_hub_log() -> Iterator[None]:
    """Keep `huggingface_hub`'s remarks about retries off the terminal; what matters is reported in words."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
