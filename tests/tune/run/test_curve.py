"""The picture of the losses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corral.tune.curve import draw_losses, smoothed, ticks

BLUE, ORANGE = (0x2F, 0x6F, 0xB7), (0xD1, 0x64, 0x2B)


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"step": i + 1, "loss": 3 / (i + 1) ** 0.5, **more} for i in range(count)]


def pixels(file: Path, color: tuple[int, int, int], below: int = 56) -> list[tuple[int, int]]:
    """Where a color is, or nearly, in the field of the curves."""
    with Image.open(file) as image:
        found = np.asarray(image.convert("RGB"), dtype=np.int64)
    near = np.abs(found - np.array(color)).max(axis=2) < 30
    return [(int(x), int(y)) for y, x in np.argwhere(near) if y >= below]


def test_a_curve_that_falls_goes_down_from_left_to_right(tmp_path: Path) -> None:
    file = tmp_path / "loss.png"
    assert draw_losses(rows(100), file, "My run · größer")
    with Image.open(file) as image:
        assert (image.format, image.size) == ("PNG", (960, 540))
    points = pixels(file, BLUE)
    left = [y for x, y in points if x < 120]
    right = [y for x, y in points if x > 880]
    assert left
    assert right
    assert max(left) < min(right), "y grows downwards"
    assert not pixels(file, ORANGE)


def test_what_is_held_out_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "loss.png"
    evaluated = [{"step": 0, "eval_loss": 2.0}, *rows(50), {"step": 50, "eval_loss": None}]
    assert draw_losses([*evaluated, {"step": 50, "eval_loss": 0.5}], file, "run")
    across = {x for x, _ in pixels(file, ORANGE)}
    assert min(across) < 85
    assert max(across) > 920


@pytest.mark.parametrize(
    "losses", [[2.0, 2.0, 2.0], [0.0, 0.0], [-3.0, -2.0], [1e-9, 1e9], [1.0, 1e30], [5, 4]]
)
def test_odd_losses_are_drawn_too(tmp_path: Path, losses: list[float]) -> None:
    file = tmp_path / "loss.png"
    assert draw_losses([{"step": i, "loss": loss} for i, loss in enumerate(losses)], file, "x" * 300)
    assert pixels(file, BLUE)


@pytest.mark.parametrize(
    "points", [[], rows(1), [{"step": 1, "loss": None}] * 3, [{"step": 1, "eval_loss": 2.0}]]
)
def test_without_two_losses_there_is_no_picture(tmp_path: Path, points: list[dict[str, Any]]) -> None:
    assert not draw_losses(points, tmp_path / "loss.png", "run")
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "PIL" else sys)
    assert not draw_losses(rows(5), tmp_path / "loss.png", "run")


def test_the_smoothed_curve_is_a_mean() -> None:
    assert smoothed([(1, 4.0), (2, 4.0), (3, 4.0)]) == [(1, 4.0), (2, 4.0), (3, 4.0)]
    noisy = [(i, 1.0 + (-1) ** i) for i in range(800)]
    assert smoothed(noisy)[-1][1] == pytest.approx(1.0, abs=0.05)
    assert smoothed([(0, 9.0), (1, 1.0)]) == [(0, 9.0), (1, 1.0)], "few points are not smoothed"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 10))
def test_ticks_are_round_and_within(low: float, width: float, most: int) -> None:
    values = ticks(low, low + width, most)
    assert len(values) <= most + 1
    slack = 1e-6 * max(abs(low), width)
    assert all(low - slack <= value <= low + width + slack for value in values)


def test_ticks_of_a_loss() -> None:
    assert ticks(0.4, 3.1, 6) == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])
    assert ticks(1, 120, 8) == pytest.approx([20, 40, 60, 80, 100, 120])
