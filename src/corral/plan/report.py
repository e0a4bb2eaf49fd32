"""A plan in words: rows and sentences for a person, with no terminal in sight."""

from __future__ import annotations

from corral.plan.devices import GIB
from corral.plan.planner import Plan

GB = 10**9


def size(amount: int) -> str:
    """Bytes in GiB (2**30), or in MiB below a tenth of that."""
    return f"{amount / GIB:,.2f} GiB" if abs(amount) >= GIB / 10 else f"{amount / 2**20:,.1f} MiB"


def decimal_size(amount: int) -> str:
    """Bytes in GB (10**9), or in MB below a tenth of that."""
    return f"{amount / GB:,.2f} GB" if abs(amount) >= GB / 10 else f"{amount / 10**6:,.1f} MB"


def heading(plan: Plan) -> str:
    """What is planned, on what."""
    devices = plan.devices
    where = "this machine's memory" if devices.is_cpu else f"{devices.name} (GB as GiB)"
    return f"{plan.model}: {plan.config.num_parameters:,} parameters on {where}"


def rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """(what, GiB, GB, how) for each part and the total, on the busiest device."""
    parts = [
        (part.name.replace("_", " "), size(part.bytes), decimal_size(part.bytes), part.note)
        for part in plan.parts
    ]
    return [*parts, ("total", size(plan.total), decimal_size(plan.total), "")]


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    devices = plan.devices
    usable = f"{size(devices.usable)} usable ({size(devices.capacity)} less {devices.reserve:.0%} reserve)"
    each = " on each device" if devices.count > 1 else ""
    if plan.fits:
        return f"Fits: {size(plan.free)} of {usable} stay free{each}."
    return f"Does not fit: {size(-plan.free)} too much for {usable}{each}."


def limits(plan: Plan) -> list[str]:
    """The longest length and the largest batch that fit, each with the other as asked."""
    workload, maximum = plan.workload, plan.config.max_position_embeddings
    flag = workload.length_flag.removeprefix("--")
    if plan.longest:
        end = ", all that the model sees" if plan.longest == maximum else ""
        longest = f"Longest {flag} that fits at batch {workload.batch}: {plan.longest:,} tokens{end}."
    else:
        longest = f"No {flag} fits at batch {workload.batch}."
    if plan.largest_batch:
        return [longest, f"Largest batch that fits at {flag} {workload.length:,}: {plan.largest_batch:,}."]
    return [longest, f"No batch fits at {flag} {workload.length:,}."]


def advice(plan: Plan) -> list[str]:
    """What would make it fit, a line for each change; nothing where it fits."""
    if plan.fits:
        return []
    if not plan.suggestions:
        return ["No change of format, length, batch or number of devices that was tried is enough."]
    changes = [f"  {item.text}  ({size(item.total)} on each device)" for item in plan.suggestions]
    return ["Any one of these fits:", *changes]
