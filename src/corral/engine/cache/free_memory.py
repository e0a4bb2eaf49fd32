"""How much memory there is and how much of it is free, on the device that the model runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from corral.plan.devices import machine_memory

# Limit, usage, statistics, and which of them is of file pages that the kernel drops first: versions 2 and 1.
_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device: all there are, and those that are free now."""

    total: int
    free: int


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a device now.

    For the CPU: what the kernel says is available, or less where a control group leaves less.

    Raises:
        PlanError: the operating system does not say.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free)
    total = machine_memory()
    return DeviceMemory(total, min(total, available_memory(total)))


def available_memory(total: int, root: Path = Path("/")) -> int:
    """Bytes of main memory that this process could still take; half of `total` where nothing says."""
    available = _statistic(root / "proc/meminfo", "MemAvailable:")
    kibibytes = total // 2048 if available is None else available
    left = (_left_in_group(root / "sys/fs/cgroup", *names) for names in _CONTROL_GROUPS)
    return min(1024 * kibibytes, *(bytes_left for bytes_left in left if bytes_left is not None), total)


def _left_in_group(folder: Path, limit: str, usage: str, statistics: str, dropped_first: str) -> int | None:
    """Limit less usage, where cached files that nobody used lately count as free; None without a limit."""
    limit_bytes, used = _number(folder / limit), _number(folder / usage)
    if limit_bytes is None or used is None:
        return None
    return max(0, limit_bytes - used + (_statistic(folder / statistics, dropped_first) or 0))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int | None:
    """The number after a name in a file of names and numbers."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None
