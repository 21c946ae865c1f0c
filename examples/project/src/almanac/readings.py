"""Readings as the station writes them: one day a line, `2026-06-01,14.2`; a day without a value was not measured."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """Mean temperature of a day, in degrees Celsius; None if there is none."""

    day: date
    celsius: float | None


def load(path: Path) -> list[Reading]:
    """All readings of a file, in order of their days.

    Raises:
        ValueError: a line is not a reading; the message names it.
    """
    with path.open(newline="") as file:
        readings = [_parse(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    return sorted(readings, key=lambda reading: reading.day)


def _parse(number: int, row: list[str]) -> Reading:
    try:
        day, value = row
        return Reading(date.fromisoformat(day), float(value) if value.strip() else None)
    except ValueError:
        raise ValueError(f"line {number} is not a reading: {','.join(row)!r}") from None
