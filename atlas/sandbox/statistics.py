"""What the pool has seen: counts for its life, times of late."""

from __future__ import annotations

import time
from collections import Counter, deque

from atlas.types import SlowRun

NUM_RECENT = 1000
NUM_SLOWEST = 10
SLOW_WITHIN_S = 24 * 3600.0


class Statistics:
    """Written by the pool only."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._slowest: list[SlowRun] = []

    def count(self, mode: str, outcome: str, wall_s: float) -> None:
        self.outcomes[outcome] += 1
        self._recent.append(wall_s)
        run = SlowRun(at=time.time(), mode=mode, outcome=outcome, wall_s=wall_s)
        self._slowest = sorted([*self.slowest(), run], key=lambda other: -other.wall_s)[:NUM_SLOWEST]

    def slowest(self) -> list[SlowRun]:
        """Of the last day, the slowest first."""
        since = time.time() - SLOW_WITHIN_S
        return [run for run in self._slowest if run.at >= since]

    def quantile_s(self, q: float) -> float:
        """Of the wall time of the last runs; 0 if there were none."""
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
