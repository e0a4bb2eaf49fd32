"""What fits: bisects for the longest length and the largest batch."""

from __future__ import annotations

from collections.abc import Callable

from corral.model.config import LlamaConfig
from corral.plan.devices import Devices
from corral.plan.workload import Workload


def total_bytes(config: LlamaConfig, workload: Workload, devices: Devices) -> int:
    """Bytes that the workload takes on the busiest device."""
    return sum(part.bytes for part in workload.parts(config, devices.count))


def longest_that_fits(config: LlamaConfig, workload: Workload, devices: Devices) -> int:
    """The longest context or training sequence that fits at this batch; 0 where none does."""

    def fits(length: int) -> bool:
        return total_bytes(config, workload.resized(length=length), devices) <= devices.usable

    return _largest(fits, config.max_position_embeddings)


def largest_batch_that_fits(config: LlamaConfig, workload: Workload, devices: Devices) -> int:
    """The largest batch that fits at this length; 0 where none does."""

    def fits(batch: int) -> bool:
        return total_bytes(config, workload.resized(batch=batch), devices) <= devices.usable

    beyond = 1
    while fits(beyond):
        beyond *= 2
    return _largest(fits, beyond)


def _largest(fits: Callable[[int], bool], highest: int) -> int:
    """The largest number in 1..highest that fits, by bisection; 0 where 1 does not."""
    low, high = 0, highest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
