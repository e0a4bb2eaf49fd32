"""Packed weights are written to their cache while the model already runs."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

from corral.kernels.packed_cache import CacheKey, PackedCache
from corral.kernels.packed_llama import PackedLlama

_LONGEST_WAIT = 10.0  # seconds that the end of the process waits for a file that is nearly there


class Keeping:
    """A model on its way into the cache, in a thread of its own.

    A process that ends waits a little for it. If that is not enough, nothing is left of the file, and the
    next start packs again.

    Args:
        cache: where the packed weights are kept.
        key: under which they are found again.
        network: the packed model; its weights stay in memory until they are written.
        notice: told why, if they cannot be kept.
    """

    def __init__(
        self, cache: PackedCache, key: CacheKey, network: PackedLlama, notice: Callable[[str], None]
    ) -> None:
        self._stopped = Event()

        def store() -> None:
            problem = cache.store(key, network.matrices, network.vectors, self._stopped.is_set)
            if problem is not None:
                notice(problem)
            _under_way.discard(self)

        self._thread = Thread(target=store, name="corral-keeping", daemon=True)
        _under_way.add(self)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the work, and says whether it has come to it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Gives the work up and clears away what there is of it."""
        self._stopped.set()
        self._thread.join()


_under_way: set[Keeping] = set()


def wait_for_all(seconds: float = _LONGEST_WAIT) -> None:
    """Waits until everything is kept, for so long at most or until Ctrl-C; the rest is given up."""
    until = time.monotonic() + seconds
    with suppress(KeyboardInterrupt):
        for keeping in tuple(_under_way):
            keeping.wait(max(0.0, until - time.monotonic()))
    for keeping in tuple(_under_way):
        keeping.stop()


atexit.register(wait_for_all)
