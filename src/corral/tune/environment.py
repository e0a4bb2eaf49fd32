"""What a run was computed with: versions and hardware, and nothing about who ran it or where."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from corral.plan.devices import machine_memory

_PACKAGES = ("corral", "torch", "numpy", "safetensors", "tokenizers", "triton", "bitsandbytes")


def environment_of(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions, processor, memory and GPUs, as plain data.

    The same environment computes the same numbers; in another one the last digits may differ.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "processor": _processor(),
        "memory_gb": round(machine_memory() / 1e9, 1),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processes": processes,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
