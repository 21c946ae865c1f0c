"""Rates with intervals, and comparisons of pairs. Pure; equal inputs give equal figures.

Samples of one task are not independent, so tasks are what is drawn again: all figures of one task stay together. Where every task
agrees, drawing tells nothing (the interval would have no width), and Wilson's interval over tasks stands in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

NUM_RESAMPLES = 4_000
Z = 1.959964  # two-sided 95 %
IntervalKind = Literal["bootstrap over tasks", "Wilson", "none"]


class Estimate(NamedTuple):
    """A rate in 0..1 with its 95 % interval; `n` is the number of tasks behind it. Without any task, value is None."""

    value: float | None
    low: float
    high: float
    n: int
    kind: IntervalKind


class Difference(NamedTuple):
    """Of two rates over the same tasks, second minus first, with a 95 % bootstrap interval over tasks.

    Attributes:
        num_gained: tasks of the first seed that only the second solved; `num_lost`: only the first.
        p: McNemar's exact test on these two counts, two-sided.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    n: int
    num_gained: int
    num_lost: int
    p: float


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Probability that one of k samples drawn without replacement passes: unbiased, https://arxiv.org/abs/2107.03374."""
    if k > num_samples:
        raise ValueError(f"pass@{k} cannot be estimated from {num_samples} samples")
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def wilson(num_successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    if n == 0:
        return 0.0, 1.0
    p, square = num_successes / n, Z * Z
    middle = (p + square / (2 * n)) / (1 + square / n)
    half = Z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_over_tasks(values: Sequence[float]) -> Estimate:
    """Mean of one figure a task."""
    return ratio_over_tasks(values, [1.0] * len(values))


def ratio_over_tasks(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum of numerators over sum of denominators, one of each a task; tasks without a denominator do not count."""
    pairs = np.array([pair for pair in zip(numerators, denominators, strict=True) if pair[1] > 0], dtype=np.float64)
    if not len(pairs):
        return Estimate(None, 0.0, 1.0, 0, "none")
    n, value = len(pairs), float(pairs[:, 0].sum() / pairs[:, 1].sum())
    rates = pairs[:, 0] / pairs[:, 1]
    if n < 2 or bool(np.all(rates == rates[0])):
        return Estimate(value, *wilson(value * n, n), n, "Wilson")
    sums = _drawn(n, pairs)  # (NUM_RESAMPLES, 2)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return Estimate(value, float(low), float(high), n, "bootstrap over tasks")


def paired(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """Compare two ways on the same tasks.

    Args:
        first: for each task, one figure (0 or 1) a seed.
        second: likewise, in the same order of tasks.
    """
    means = np.array([(float(np.mean(a)), float(np.mean(b))) for a, b in zip(first, second, strict=True)])
    if not len(means):
        raise ValueError("there is no task that both have")
    drawn = _drawn(len(means), means) / len(means)
    low, high = np.percentile(drawn[:, 1] - drawn[:, 0], [2.5, 97.5])
    gained = sum(b[0] > a[0] for a, b in zip(first, second, strict=True))
    lost = sum(b[0] < a[0] for a, b in zip(first, second, strict=True))
    before, after = (float(value) for value in means.mean(axis=0))
    return Difference(before, after, after - before, float(low), float(high), len(means), gained, lost, mcnemar_p(gained, lost))


def mcnemar_p(num_gained: int, num_lost: int) -> float:
    """Two-sided exact p: how likely so uneven a split of the tasks that changed is, if both ways were equally good."""
    n = num_gained + num_lost
    tail = sum(math.comb(n, i) for i in range(min(num_gained, num_lost) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _drawn(n: int, rows: np.ndarray) -> np.ndarray:
    """Sums of `rows` (n, columns) over tasks drawn with replacement: (NUM_RESAMPLES, columns)."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=NUM_RESAMPLES)  # (NUM_RESAMPLES, n)
    return np.asarray(counts @ rows, dtype=np.float64)
