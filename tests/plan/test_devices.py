"""What people write for --devices, and what this machine has."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import PlanError
from corral.plan.devices import GIB, machine_memory, parse_devices


@pytest.mark.parametrize(
    ("text", "name", "count", "capacity"),
    [
        ("80GB", "1x80GB", 1, 80 * GIB),
        ("1x80GB", "1x80GB", 1, 80 * GIB),
        ("2x24GB", "2x24GB", 2, 24 * GIB),
        (" 8 x 141 gib ", "8x141GB", 8, 141 * GIB),
        ("1x7.5GB", "1x7.5GB", 1, 7 * GIB + GIB // 2),
        ("512MB", "1x512MB", 1, GIB // 2),
        ("1.5TB", "1x1.5TB", 1, 1536 * GIB),
    ],
)
def test_devices_are_read_as_people_write_them(text: str, name: str, count: int, capacity: int) -> None:
    devices = parse_devices(text)
    assert (devices.name, devices.count, devices.capacity) == (name, count, capacity)


@pytest.mark.parametrize(
    "text", ["", "lots", "80", "x80GB", "2x", "-1x80GB", "1x24GB,1x48GB", "80GBx2", "9" * 400 + "GB"]
)
def test_other_words_for_devices_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="write it like 80GB, 2x24GB or cpu"):
        parse_devices(text)


@pytest.mark.parametrize("text", ["0x80GB", "1x0GB"])
def test_devices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="--devices is"):
        parse_devices(text)


@pytest.mark.parametrize("reserve", [-0.1, 1.0, float("nan")])
def test_a_reserve_that_is_no_fraction_is_refused(reserve: float) -> None:
    with pytest.raises(PlanError, match="--reserve is"):
        parse_devices("80GB", reserve)


@given(st.integers(1, 10**6), st.floats(0, 0.999))
def test_reserved_and_usable_make_up_the_capacity(size: int, reserve: float) -> None:
    devices = parse_devices(f"{size}MB", reserve)
    assert devices.reserved + devices.usable == devices.capacity
    assert 0 <= devices.reserved <= devices.capacity


def test_the_default_is_this_machines_memory() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine_memory() <= physical
    assert parse_devices(None) == parse_devices("CPU")
    assert parse_devices(None).capacity == machine_memory()
