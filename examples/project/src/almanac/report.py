"""The report: a line a day, with the smoothed temperature, and the warmest day."""

from __future__ import annotations

from almanac.readings import Reading
from almanac.series import celsius, rolling_mean, warmest

WINDOW_DAYS = 3


def report(readings: list[Reading]) -> str:
    """Text with one line for each day."""
    values = celsius(readings)
    smooth = rolling_mean(values, WINDOW_DAYS)
    lines = [f"{reading.day}  {_shown(reading.celsius)}  {mean:5.1f}" for reading, mean in zip(readings, smooth, strict=True)]
    best = readings[warmest(values)]
    return "\n".join([*lines, f"warmest: {best.day}, {best.celsius:.1f}"]) + "\n"


def _shown(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.1f}"
