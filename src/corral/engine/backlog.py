"""Requests that were taken on and have not had their first step: how many there may be."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

from corral.engine.config import SchedulerConfig
from corral.engine.sequence import RunningRequest
from corral.errors import EngineBusyError


class Backlog:
    """Bounds what waits, by requests and by tokens. Safe to use from many threads."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._owners: set[RunningRequest] = set()
        self._num_tokens = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._owners)

    def __iter__(self) -> Iterator[RunningRequest]:
        with self._lock:
            return iter(list(self._owners))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts that wait."""
        return self._num_tokens

    def add(self, owner: RunningRequest) -> None:
        """Lets a request wait. Alone, it may be of any length.

        Raises:
            EngineBusyError: there is no room for it.
        """
        config, num_tokens = self._config, len(owner.request.tokens)
        with self._lock:
            if len(self._owners) >= config.max_waiting_requests:
                raise EngineBusyError(
                    f"{len(self._owners)} requests wait already (max_waiting_requests); try again later"
                )
            if self._owners and self._num_tokens + num_tokens > config.max_waiting_tokens:
                raise EngineBusyError(
                    f"prompts of {self._num_tokens} tokens wait already (max_waiting_tokens is "
                    f"{config.max_waiting_tokens}); try again later"
                )
            self._owners.add(owner)
            self._num_tokens += num_tokens

    def remove(self, owner: RunningRequest) -> None:
        """Takes out a request that has started or ended, if it is there."""
        with self._lock:
            if owner in self._owners:
                self._owners.remove(owner)
                self._num_tokens -= len(owner.request.tokens)
