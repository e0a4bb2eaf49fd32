"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """A processor, the cores that are used of it, and the bytes per second that they read from memory."""

    processor: str
    family: str
    cores: tuple[int, ...]
    bandwidth: float

    def __str__(self) -> str:
        cores = f"{len(self.cores)} cores" if len(self.cores) > 1 else "1 core"
        return f"{self.processor} ({self.family}), {cores}, reads {self.bandwidth / 1e9:.1f} GB/s"


def physical_cores() -> tuple[int, ...]:
    """One processor of each physical core that this process may use."""
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        found.setdefault(siblings.read_text().strip() if siblings.exists() else str(cpu), cpu)
    return tuple(found.values())


def busy_share(seconds: float = 2.0) -> float:
    """The share of the processors' time that other processes take now; 0 where the system does not tell.

    Peers whose threads wait for each other without pause suffer most from a busy machine.
    """
    before = _cpu_times()
    time.sleep(seconds)
    spent = [after - then for after, then in zip(_cpu_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent) if sum(spent) else 0.0


def _cpu_times() -> list[int]:
    """Ticks of all processors by kind, as `man 5 proc` has them: idle is the fourth, iowait the fifth."""
    path = Path("/proc/stat")
    return [int(ticks) for ticks in path.read_text().split("\n")[0].split()[1:]] if path.exists() else [0] * 5


def describe(cores: tuple[int, ...]) -> Machine:
    """Measures the bandwidth with a thread on each core."""
    import torch

    from corral.bench.bandwidth import read_bandwidth

    before = torch.get_num_threads()
    torch.set_num_threads(len(cores))
    try:
        bandwidth = read_bandwidth(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    fields = _cpuinfo()
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return Machine(fields.get("model name", platform.machine()), family, cores, bandwidth)


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
