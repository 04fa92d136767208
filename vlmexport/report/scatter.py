"""Points by size and a measure as an SVG that needs nothing else, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlmexport.report.templating import environment

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 46
"""Margins; the right one holds the labels of points at the edge."""


@dataclass(frozen=True)
class Point:
    """A labelled value."""

    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """One plot. ``y`` is positive where ``is_log``."""

    title: str
    x_label: str
    y_label: str
    points: list[Point]
    is_log: bool = False


@dataclass(frozen=True)
class Axis:
    """Values and where they lie, from ``start`` to ``end`` pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (math.log10(x) if self.is_log else x for x in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Label and pixel: decades of a logarithmic axis, else about five round numbers."""
        if self.is_log:
            decades = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
            return [(f"{10.0**power:g}", self.place(10.0**power)) for power in decades]
        step = _step(self.high - self.low)
        values = [step * i for i in range(round(self.low / step), round(self.high / step) + 1)]
        return [(f"{value:g}", self.place(value)) for value in values]


def svg(panels: Sequence[Panel]) -> str:
    """One file, the panels below each other.

    Args:
        panels: each with at least one point.
    """
    drawn = [(panel, *_axes(panel)) for panel in panels]
    template = environment().get_template("scatter.svg.jinja")
    return template.render(
        drawn=drawn, width=WIDTH, height=HEIGHT, left=LEFT, right=WIDTH - RIGHT, top=TOP, bottom=HEIGHT - BOTTOM
    )


def _axes(panel: Panel) -> tuple[Axis, Axis]:
    x = _linear([point.x for point in panel.points], LEFT, WIDTH - RIGHT)
    values = [point.y for point in panel.points]
    edges = (HEIGHT - BOTTOM, TOP)
    return x, _decades(values, *edges) if panel.is_log else _linear(values, *edges)


def _linear(values: Sequence[float], start: float, end: float) -> Axis:
    """From 0 to the round number above the greatest."""
    step = _step(max(values))
    return Axis(0.0, step * math.ceil(max(values) / step), start, end)


def _decades(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Axis(10.0**low, 10.0 ** max(high, low + 1), start, end, is_log=True)


def _step(length: float) -> float:
    """1, 2 or 5 times a power of ten, about a fifth of a length."""
    power = 10.0 ** math.floor(math.log10(length / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= length / 5)
