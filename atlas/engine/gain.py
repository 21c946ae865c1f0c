"""How many guessed tokens are worth a row: what they may bring against what a step takes.

A guess of d tokens, each right with probability p if those before it were, brings p + p**2 + ... + p**d tokens. What further rows
cost depends on the machine: on a GPU, where a step takes as long as reading the weights, next to nothing; on a CPU nearly their
share. Both are measured while the engine works.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ROWS_MAX = 40  # of a step with drafts
LEAST_GAIN = 1.05  # below it the estimates' errors are larger than what is to be had; chosen
LEAST_MARGINAL = 0.02  # tokens that a row may bring; chosen
CLIP = 0.5  # a step's time counts as at most this far from what was expected, in nats: the machine may have been busy
SCALE_RATE, SHAPE_RATE = 0.1, 0.05


@dataclass(slots=True)
class Share:
    """How often something was the case, the last times counting most."""

    hits: float = 0.0
    tries: float = 0.0

    def note(self, hits: int, tries: int, *, memory: float) -> None:
        """`memory`: about how many tries back is remembered."""
        keep = (1.0 - 1.0 / memory) ** tries
        self.hits = self.hits * keep + hits
        self.tries = self.tries * keep + tries

    def given(self, prior: float, *, weight: float) -> float:
        """With a belief that is worth `weight` tries."""
        return (self.hits + weight * prior) / (self.tries + weight)


class RowCosts:
    """How long a step of so many rows takes, learnt from those there were.

    Log seconds are the sum of a scale, which follows the machine's load, and a shape over the number of rows, which does not.

    Args:
        share: what a further row costs, as part of a step of one row, until it has been seen.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._scale: float | None = None
        self._shape = np.log1p(share * np.arange(ROWS_MAX))
        self._seen = np.zeros(ROWS_MAX, np.int64)
        self._seconds: list[float] = []

    @property
    def is_known(self) -> bool:
        return self._scale is not None

    def note(self, rows: int, seconds: float) -> None:
        """A step of that many rows took that long; nothing is learnt of more than ROWS_MAX."""
        if rows > ROWS_MAX:
            return
        at, log_s = rows - 1, math.log(max(seconds, 1e-6))
        if self._scale is None:
            self._scale = log_s - float(self._shape[at])
        error = max(-CLIP, min(CLIP, log_s - self._scale - float(self._shape[at])))
        seen = int(self._seen[at])
        self._scale += SCALE_RATE * error * seen / (seen + 8)
        self._shape[at] += error * max(SHAPE_RATE, 1 / (seen + 2))
        self._seen[at] = seen + 1
        self._seconds = []

    def seconds(self, rows: int) -> float:
        if not self._seconds:
            self._seconds = self._interpolated()
        return self._seconds[min(rows, ROWS_MAX) - 1]

    def _interpolated(self) -> list[float]:
        """Between what has been seen, and from the last seen on as steeply as up to there, or by the share."""
        seen = np.flatnonzero(self._seen)
        costs = np.exp(self._shape)
        all_rows = np.arange(ROWS_MAX)
        if len(seen):
            first, last = seen[0], seen[-1]
            rise = max(0.0, costs[last] - costs[first]) / (last - first) if last > first else self._share * costs[first]
            costs = np.interp(all_rows, seen, costs[seen]) + rise * np.maximum(0, all_rows - last)
        return list((np.exp(self._scale or 0.0) * costs).tolist())


class Offer(NamedTuple):
    """Guesses that could be computed: how many, how likely each is right, and what making `n` of them takes."""

    most: int
    chance: float
    cost_s: Callable[[int], float]


def best_lengths(
    offers: list[Offer], *, rows: int, room: int, seconds: Callable[[int], float], least_gain: float = LEAST_GAIN
) -> list[int]:
    """How much of each offer to take, so that most tokens come per second; nothing unless that is `least_gain` times as many.

    `rows` has the step without guesses, `room` is how many more it may have, `seconds` what a step of so many takes.
    """
    lengths, best = [0] * len(offers), [0] * len(offers)
    marginals = [offer.chance if offer.most > 0 else 0.0 for offer in offers]
    tokens, best_rate = float(rows), least_gain * rows / seconds(rows)
    for added in range(1, min(room, ROWS_MAX - rows) + 1):
        index = max(range(len(offers)), key=marginals.__getitem__)
        if marginals[index] < LEAST_MARGINAL:
            break
        tokens += marginals[index]
        lengths[index] += 1
        offer = offers[index]
        marginals[index] = marginals[index] * offer.chance if lengths[index] < offer.most else 0.0
        guessing_s = max(offer.cost_s(length) for offer, length in zip(offers, lengths, strict=True))
        rate = tokens / (seconds(rows + added) + guessing_s)
        if rate > best_rate:
            best, best_rate = lengths.copy(), rate
    return best
