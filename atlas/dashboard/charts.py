"""Where the marks of a chart stand. Pure: numbers in, fractions of the drawing's width and height out; templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    """One bar in hundredths of the drawing; `parts` are (offset from the top, height) of the stacked values, lowest first."""

    left: float
    width: float
    parts: tuple[tuple[float, float], ...]
    label: str
    values: tuple[float, ...]


class BarChart(NamedTuple):
    """Bars and the value their full height stands for; `is_empty`: every value is zero."""

    bars: tuple[Bar, ...]
    top: float
    is_empty: bool


def bar_chart(rows: Sequence[tuple[str, Sequence[float]]], *, gap: float = 0.28) -> BarChart:
    """Stacked bars of (label, values), evenly spaced; `gap` is the share of a slot left empty."""
    highest = max((sum(values) for _, values in rows), default=0.0)
    top = nice_top(highest)
    slot = 100 / max(len(rows), 1)
    bars = tuple(
        Bar(
            left=round(position * slot + slot * gap / 2, 3),
            width=round(slot * (1 - gap), 3),
            parts=_stack(values, top),
            label=label,
            values=tuple(values),
        )
        for position, (label, values) in enumerate(rows)
    )
    return BarChart(bars, top, highest == 0)


def nice_top(highest: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `highest`; 1 for nothing."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= highest * (1 - 1e-9))


def spark_line(values: Sequence[float], *, width: float = 100, height: float = 24) -> str:
    """Points of an SVG polyline from the oldest value to the newest, zero at the bottom; empty below two values."""
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    step = width / (len(values) - 1)
    inset = 1.5  # half a line's width, so that the highest value is not cut off
    usable = height - 2 * inset
    return " ".join(f"{i * step:.1f},{inset + usable * (1 - value / top):.1f}" for i, value in enumerate(values))


def level(value: float, top: float, *, levels: int = 5) -> int:
    """Shade of a heat map's cell: 0 only for nothing, `levels` - 1 for the highest. Square root, so that small values show."""
    if value <= 0 or top <= 0:
        return 0
    return max(1, min(levels - 1, math.ceil(math.sqrt(value / top) * (levels - 1))))


def _stack(values: Sequence[float], top: float) -> tuple[tuple[float, float], ...]:
    parts, below = [], 0.0
    for value in values:
        height = 100 * value / top
        parts.append((round(100 - below - height, 3), round(height, 3)))
        below += height
    return tuple(parts)
