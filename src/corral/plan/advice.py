"""What to change when work does not fit. Every suggestion is planned, and fits, before it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.plan.devices import GIB, Devices
from corral.plan.limits import largest_batch_that_fits, longest_that_fits, total_bytes
from corral.plan.workload import Workload

_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_COMMON_SIZES = (24, 48, 80)  # GB of GPUs that one can rent, for a machine that named none
_SHORTEST_WORTH_SAYING = 128  # tokens; less is no advice


@dataclass(frozen=True)
class Suggestion:
    """A change after which the work fits: the flags to set, and the bytes it then takes on each device."""

    flags: Mapping[str, str]
    total: int

    @property
    def text(self) -> str:
        """The flags as they are typed."""
        return " ".join(f"{flag} {value}".strip() for flag, value in self.flags.items())


def suggest(config: LlamaConfig, workload: Workload, devices: Devices) -> Iterator[Suggestion]:
    """Changes that each make the work fit, gentlest first: formats, then batch and length, then devices."""
    yield from _leaner(config, workload, devices)
    yield from _smaller_batch(config, workload, devices)
    yield from _shorter(config, workload, devices)
    yield from _more_devices(config, workload, devices)


def _leaner(config: LlamaConfig, workload: Workload, devices: Devices) -> Iterator[Suggestion]:
    """The same work in other formats. Flags that help on their own are not named again with others."""
    named: list[frozenset[str]] = []
    for flags, leaner in workload.savings(config):
        total = total_bytes(config, leaner, devices)
        if total <= devices.usable and not any(names <= flags.keys() for names in named):
            named.append(frozenset(flags))
            yield Suggestion(flags, total)


def _smaller_batch(config: LlamaConfig, workload: Workload, devices: Devices) -> Iterator[Suggestion]:
    batch = largest_batch_that_fits(config, workload, devices)
    if batch:
        total = total_bytes(config, workload.resized(batch=batch), devices)
        yield Suggestion({"--batch": str(batch)}, total)


def _shorter(config: LlamaConfig, workload: Workload, devices: Devices) -> Iterator[Suggestion]:
    """The longest length as things are; where no saving is enough alone, also the longest with any saving."""
    longest = longest_that_fits(config, workload, devices)
    if longest >= _SHORTEST_WORTH_SAYING:
        yield _resized(config, workload, devices, {}, longest)
    best: Mapping[str, str] = {}
    for flags, leaner in workload.savings(config):
        length = longest_that_fits(config, leaner, devices)
        if length >= workload.length:
            return
        if length > max(longest, _SHORTEST_WORTH_SAYING):
            best, longest, helped = flags, length, leaner
    if best:
        yield _resized(config, helped, devices, best, longest)


def _resized(
    config: LlamaConfig, workload: Workload, devices: Devices, flags: Mapping[str, str], length: int
) -> Suggestion:
    total = total_bytes(config, workload.resized(length=length), devices)
    return Suggestion({**flags, workload.length_flag: str(length)}, total)


def _more_devices(config: LlamaConfig, workload: Workload, devices: Devices) -> Iterator[Suggestion]:
    """The fewest devices of the same kind that are enough; where none were named, of a common size."""
    for more in _common_devices(devices) if devices.is_cpu else _multiples(devices):
        if _can_run(config, workload, more) and total_bytes(config, workload, more) <= more.usable:
            yield Suggestion({"--devices": more.name}, total_bytes(config, workload, more))
            return


def _multiples(devices: Devices) -> Iterator[Devices]:
    return (devices.times(count) for count in _COUNTS if count > devices.count)


def _common_devices(devices: Devices) -> Iterator[Devices]:
    for count in _COUNTS:
        for size in _COMMON_SIZES:
            yield replace(devices, name=f"{count}x{size}GB", count=count, capacity=size * GIB)


def _can_run(config: LlamaConfig, workload: Workload, devices: Devices) -> bool:
    try:
        workload.check(config, devices.count)
    except PlanError:
        return False
    return True
