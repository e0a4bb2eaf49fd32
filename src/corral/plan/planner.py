"""The plan: what a workload takes on given devices, what would fit, and what to change when it does not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from corral.model.config import LlamaConfig
from corral.plan.advice import Suggestion, suggest
from corral.plan.devices import Devices
from corral.plan.limits import largest_batch_that_fits, longest_that_fits, total_bytes
from corral.plan.workload import Part, Workload


@dataclass(frozen=True)
class Plan:
    """What a workload takes on devices. `parts` are bytes on the busiest device and add up to `total`.

    `longest` is the longest context or training sequence that fits at this batch, and `largest_batch` the
    largest batch that fits at this length; 0 where none does. `suggestions` is empty where the work fits.
    """

    model: str
    config: LlamaConfig
    workload: Workload
    devices: Devices
    parts: tuple[Part, ...]
    longest: int
    largest_batch: int
    suggestions: tuple[Suggestion, ...]

    @property
    def total(self) -> int:
        """Bytes taken on the busiest device."""
        return sum(part.bytes for part in self.parts)

    @property
    def free(self) -> int:
        """Usable bytes left on the busiest device; negative by what is missing."""
        return self.devices.usable - self.total

    @property
    def fits(self) -> bool:
        return self.free >= 0

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, as `corral plan --json` prints it. All sizes are in bytes.

        Keys: model {name, parameters, max_position_embeddings}; request, the workload's fields with all
        formats named; devices {name, count, capacity, reserved, usable}, sizes of one device; per_device
        {part: bytes}; total, free and fits, for the busiest device; limits {length, batch}; suggestions
        [{flags, total}].
        """
        config, devices = self.config, self.devices
        return {
            "model": {
                "name": self.model,
                "parameters": config.num_parameters,
                "max_position_embeddings": config.max_position_embeddings,
            },
            "request": dataclasses.asdict(self.workload.resolved(config)),
            "devices": {
                "name": devices.name,
                "count": devices.count,
                "capacity": devices.capacity,
                "reserved": devices.reserved,
                "usable": devices.usable,
            },
            "per_device": {part.name: part.bytes for part in self.parts},
            "total": self.total,
            "free": self.free,
            "fits": self.fits,
            "limits": {"length": self.longest, "batch": self.largest_batch},
            "suggestions": [{"flags": item.text, "total": item.total} for item in self.suggestions],
        }


def make_plan(config: LlamaConfig, workload: Workload, devices: Devices, model: str = "") -> Plan:
    """Computes what `workload` takes on `devices`.

    Raises:
        PlanError: the workload makes no sense for this model or these devices.
    """
    workload.check(config, devices.count)
    fits = total_bytes(config, workload, devices) <= devices.usable
    return Plan(
        model=model,
        config=config,
        workload=workload,
        devices=devices,
        parts=workload.parts(config, devices.count),
        longest=longest_that_fits(config, workload, devices),
        largest_batch=largest_batch_that_fits(config, workload, devices),
        suggestions=() if fits else tuple(suggest(config, workload, devices)),
    )
