"""What there is to fit into: parses `2x24GB`, and reads the memory of this machine."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from corral.errors import PlanError

GIB = 2**30
DEFAULT_RESERVE = 0.06
_UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}
_DEVICES = re.compile(r"(?:(\d{1,6})\s*x\s*)?(\d{1,9}(?:\.\d{1,9})?)\s*([MGT])i?B", re.IGNORECASE)
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Devices:
    """`count` equal devices of `capacity` bytes each, of which the fraction `reserve` is left alone.

    The reserve is for what no formula here covers: the driver's context, the allocator's unused pieces, the
    few tenths of a GiB by which a device falls short of its name, and on a CPU the rest of the system.
    """

    name: str
    count: int
    capacity: int
    reserve: float = DEFAULT_RESERVE

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(f"--devices is {self.name!r}; it needs at least one device")
        if self.capacity < 1:
            raise PlanError(f"--devices is {self.name!r}; a device needs some memory")
        if not 0 <= self.reserve < 1:
            raise PlanError(f"--reserve is {self.reserve}; it must be at least 0 and less than 1")

    @property
    def reserved(self) -> int:
        """Bytes of each device that are left alone."""
        return math.ceil(self.capacity * self.reserve)

    @property
    def usable(self) -> int:
        """Bytes of each device that a plan may fill."""
        return self.capacity - self.reserved

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def times(self, count: int) -> Devices:
        """Another number of the same devices."""
        return replace(self, name=f"{count}x{self.name.rpartition('x')[2]}", count=count)


def parse_devices(text: str | None, reserve: float = DEFAULT_RESERVE) -> Devices:
    """Reads `80GB`, `2x24GB` or `cpu`; None means `cpu`, the memory of this machine.

    Device makers write GB and count in powers of two, so an 80GB device is taken to have 80 * 2**30 bytes;
    GB and GiB mean the same here.

    Raises:
        PlanError: the text is none of these, or says nothing that could exist.
    """
    if text is None or text.strip().lower() == "cpu":
        return Devices("cpu", 1, machine_memory(), reserve)
    match = _DEVICES.fullmatch(text.strip())
    if match is None:
        raise PlanError(f"--devices is {text!r}; write it like 80GB, 2x24GB or cpu")
    count, size, unit = match.groups()
    name = f"{int(count or 1)}x{size}{unit.upper()}B"
    return Devices(name, int(count or 1), int(float(size) * _UNITS[unit.upper()]), reserve)


def machine_memory() -> int:
    """Bytes of main memory: what the machine has, or less where a control group limits this process.

    Raises:
        PlanError: the operating system does not say.
    """
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError) as error:
        raise PlanError(
            "cannot tell how much memory this machine has; say it with --devices, like 16GB"
        ) from error
    limits = (_limit(Path(path)) for path in _CGROUP_LIMITS)
    return min(total, *(limit for limit in limits if limit is not None), total)


def _limit(path: Path) -> int | None:
    """A control group's limit; None where there is no such file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
