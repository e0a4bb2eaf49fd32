"""How high the learning rate is at each step, relative to its highest."""

from __future__ import annotations

import math
from dataclasses import dataclass

from corral.tune.config import ScheduleConfig
from corral.tune.errors import TuneError


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: that of transformers' `get_*_schedule*` where they have one of the kind.

    It has no state: where a run resumes, it is the same.

    Attributes:
        kind, min_ratio: as in `ScheduleConfig`.
        total: steps of the run.
        warmup, decay: steps, the latter of "wsd" only.
    """

    kind: str
    total: int
    warmup: int
    decay: int = 0
    min_ratio: float = 0.0

    @classmethod
    def of(cls, config: ScheduleConfig, total: int) -> Schedule:
        """The schedule of a run of so many steps. Shares of them are rounded up.

        Raises:
            TuneError: a number of steps is not whole, or more than the run has.
        """
        warmup = _steps("schedule.warmup", config.warmup, total)
        if config.kind != "wsd":
            if warmup >= total and config.warmup >= 1:
                raise TuneError(
                    f"schedule.warmup is {warmup} steps, but the run has {total}: it would never reach its "
                    "learning rate; give fewer, or a share below 1"
                )
            return cls(config.kind, total, min(warmup, total), min_ratio=config.min_ratio)
        decay = _steps("schedule.decay", config.decay, total)
        shares = config.warmup < 1 and config.decay < 1 and config.warmup + config.decay <= 1
        if warmup + decay > total and not shares:
            raise TuneError(
                f"schedule.warmup and schedule.decay are {warmup} and {decay} steps, but the run has "
                f"{total}; give fewer, or shares below 1"
            )
        return cls(config.kind, total, warmup, min(decay, total - warmup), config.min_ratio)

    def __call__(self, step: int) -> float:
        """What the highest learning rate is multiplied with in the step after `step` others, from 0 to 1."""
        if step < self.warmup:
            risen = step / self.warmup
            return self._above_least(risen) if self.kind == "wsd" else risen
        if self.kind == "constant":
            return 1.0
        begin = self.total - self.decay if self.kind == "wsd" else self.warmup
        gone = min(1.0, max(0.0, (step - begin) / max(1, self.total - begin)))
        return self._above_least(1 - gone if self.kind == "linear" else (1 + math.cos(math.pi * gone)) / 2)

    def _above_least(self, factor: float) -> float:
        return factor * (1 - self.min_ratio) + self.min_ratio


def _steps(key: str, value: float, total: int) -> int:
    """Steps of a number that is a share of them below 1."""
    if value < 1:
        return math.ceil(value * total)
    if value != int(value):
        raise TuneError(f"{key} is {value:g}: steps are whole numbers, and shares of them are below 1")
    return int(value)
