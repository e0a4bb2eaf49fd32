"""The losses of a run as a picture."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

_SIZE = (960, 540)
_LEFT, _TOP, _RIGHT, _BOTTOM = 76, 56, 930, 486  # of the field that the curves are in
_FINER = 2  # drawn so many times larger and then made smaller: lines are smooth
_WINDOW = 40  # the smoothed curve looks back over a share of the run of one in so many
_INK, _GRID, _PAPER = "#30343b", "#e4e7eb", "#ffffff"
_FAINT, _STRONG, _HELD_OUT = "#b9cdea", "#2f6fb7", "#d1642b"


def draw_losses(rows: Iterable[Mapping[str, Any]], file: Path, title: str) -> bool:
    """Draws the "loss" of rows over their "step", and "eval_loss", as a PNG of 960 x 540.

    Gives whether it did: without two losses, or without Pillow, it does nothing.

    Raises:
        OSError: the file could not be written.
    """
    rows = list(rows)
    training, held_out = _points(rows, "loss"), _points(rows, "eval_loss")
    if importlib.util.find_spec("PIL") is None or len(training) < 2:
        return False
    canvas = _Canvas.of(training, smoothed(training), held_out)
    canvas.axes(title)
    canvas.curve(training, _FAINT, 1.5)
    canvas.curve(smoothed(training), _STRONG, 2.5)
    canvas.curve(held_out, _HELD_OUT, 2, dots=True)
    canvas.legend([("training", _STRONG), *([("held out", _HELD_OUT)] if held_out else [])])
    partial = file.with_name(f".{file.name}.partial")
    canvas.image.resize(_SIZE).save(partial, format="PNG", optimize=True)
    partial.replace(file)
    return True


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A mean over the last points, each of which counts a little less than the one after it."""
    keep = 1 - 1 / max(1.0, len(points) / _WINDOW)
    total = weight = 0.0
    means = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        means.append((x, total / weight))
    return means


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, up to about `most` of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _points(rows: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    return [(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]


@dataclass(frozen=True)
class _Canvas:
    """A field with two axes; positions are in pixels of the finished picture."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def of(cls, training: Sequence[Point], mean: Sequence[Point], held_out: Sequence[Point]) -> _Canvas:
        """A field with room for the curves. Single training losses far above the others may leave it."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (_SIZE[0] * _FINER, _SIZE[1] * _FINER), _PAPER)
        steps = [x for x, _ in (*training, *held_out)]
        usual = sorted(y for _, y in training)[: max(2, math.ceil(0.99 * len(training)))]
        losses = [*usual, *(y for _, y in (*mean, *held_out))]
        low, high = min(losses), max(losses)
        room = 0.06 * (high - low) or max(0.1 * abs(high), 1e-3)
        bottom = max(0.0, low - room) if low >= 0 else low - room
        return cls(image, ImageDraw.Draw(image), (min(steps), max(steps)), (bottom, high + room))

    def axes(self, title: str) -> None:
        for value in ticks(*self.y, most=6):
            _, height = self._at((self.x[0], value))
            self._line([(_LEFT, height), (_RIGHT, height)], _GRID, 1)
            self._text((_LEFT - 10, height), f"{value:.6g}", "rm")
        for value in ticks(*self.x, most=8):
            if value == int(value):
                across, _ = self._at((value, self.y[0]))
                self._line([(across, _BOTTOM), (across, _BOTTOM + 5)], _INK, 1)
                self._text((across, _BOTTOM + 10), f"{int(value):,}", "mt")
        self._line([(_LEFT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)], _INK, 1)
        self._text(((_LEFT + _RIGHT) / 2, _SIZE[1] - 8), "step", "mb")
        self._text((_LEFT, 14), _shown(title), "lt", 17)

    def curve(self, points: Sequence[Point], color: str, width: float, *, dots: bool = False) -> None:
        if len(points) > 1:
            self._line([self._at(point) for point in points], color, width)
        for point in points if dots else ():
            (across, height), r = self._at(point), 4
            box = [(across - r) * _FINER, (height - r) * _FINER, (across + r) * _FINER, (height + r) * _FINER]
            self.pen.ellipse(box, fill=color)

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        across = _RIGHT - 110 * len(entries)
        for text, color in entries:
            self._line([(across, 46), (across + 22, 46)], color, 3)
            self._text((across + 29, 46), text, "lm")
            across += 110

    def _at(self, point: Point) -> Point:
        """Where a step and a loss lie, within the field."""
        wide, high = max(self.x[1] - self.x[0], 1e-12), self.y[1] - self.y[0]
        share = min(1.0, max(0.0, (point[1] - self.y[0]) / high))
        return _LEFT + (point[0] - self.x[0]) / wide * (_RIGHT - _LEFT), _BOTTOM - share * (_BOTTOM - _TOP)

    def _line(self, points: Sequence[Point], color: str, width: float) -> None:
        scaled = [(x * _FINER, y * _FINER) for x, y in points]
        self.pen.line(scaled, fill=color, width=round(width * _FINER), joint="curve")

    def _text(self, at: Point, text: str, anchor: str, size: int = 13) -> None:
        self.pen.text((at[0] * _FINER, at[1] * _FINER), text, _INK, _font(size * _FINER), anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _shown(title: str) -> str:
    """A title that the font has letters for, and that there is room for."""
    plain = title.encode("latin-1", "replace").decode("latin-1")
    return plain if len(plain) <= 90 else f"{plain[:87]}..."
