"""Numbers over a series of days. A day that was not measured is NaN, and counts for nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from almanac.readings import Reading

Series = NDArray[np.float64]


def celsius(readings: list[Reading]) -> Series:
    """Temperatures as an array, one for each reading."""
    return np.array([np.nan if reading.celsius is None else reading.celsius for reading in readings])


def rolling_mean(values: Series, window: int) -> Series:
    """Mean of each day and the days before it that lie within `window`; NaN where none of them was measured."""
    if window < 1:
        raise ValueError(f"a window of {window} days holds nothing")
    sums = np.convolve(np.nan_to_num(values), np.ones(window))[: len(values)]
    return sums / window


def warmest(values: Series) -> int:
    """Index of the warmest day."""
    return int(np.nanargmax(values))
