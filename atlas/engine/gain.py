"""How many guessed tokens are worth a row: what they may bring against what a step takes.

A guess of d tokens, each right with probability p if those before it were, brings p + p**2 + ... + p**d tokens. What further rows
cost depends on the machine: on a GPU, where a step takes as long as reading the weights, next to nothing; on a CPU nearly their
share. Both are measured while the engine works.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

ROWS_MAX = 40  # of a step with drafts
LEAST_GAIN = 1.1  # below it what is to be had may be less than the estimates' errors; chosen, unmeasured
LEAST_MARGINAL = 0.02  # tokens that a row may bring; chosen
LEAST_RISE = 0.01  # of a step, per row further than any seen; chosen
CLIP = 0.5  # a step's time counts as at most this far from what was expected, in nats: the machine may have been busy
FRESH_STEPS = 16  # so many steps change little in what is known; chosen
SCALE_RATE, SHAPE_RATE = 0.1, 0.02  # a change of load goes to the scale, nearly all of it; chosen


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


@dataclass(slots=True)
class Record:
    """How one source's guesses for a sequence turn out; its last one was made when the sequence had `length` tokens.

    Attributes:
        num_missed: for how many steps nothing has been worth computing.
        pause: steps until it is worth looking again.
    """

    share: Share = field(default_factory=Share)
    tokens: tuple[int, ...] = ()
    kind: str = ""
    length: int = 0
    num_missed: int = 0
    pause: int = 0


class RowCosts:
    """How long a step of so many rows takes, learnt from those there were.

    Log seconds are the sum of a scale, which follows the machine's load, and a shape over the number of rows, which does not.

    Args:
        share: what a further row costs, as part of a step of one row, until it has been seen.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._scale: float | None = None
        self._shape = [math.log1p(share * more) for more in range(ROWS_MAX)]
        self._seen = [0] * ROWS_MAX
        self._most = 0
        self._relative: list[float] = []
        self._num_fresh = 0  # steps since `_relative` was made

    @property
    def is_known(self) -> bool:
        return self._scale is not None

    @property
    def within_reach(self) -> int:
        """Most rows that a step should have: not many more than any had whose time is known."""
        return 2 * self._most + 2

    def note(self, rows: int, seconds: float) -> None:
        """A step of that many rows took that long; nothing is learnt of more than ROWS_MAX."""
        if rows > ROWS_MAX:
            return
        at, log_s = rows - 1, math.log(max(seconds, 1e-6))
        if self._scale is None:
            self._scale = log_s - self._shape[at]
        error = max(-CLIP, min(CLIP, log_s - self._scale - self._shape[at]))
        seen = self._seen[at]
        self._scale += SCALE_RATE * error * seen / (seen + 8)
        self._shape[at] += error * max(SHAPE_RATE, 1 / (seen + 2))
        self._seen[at] = seen + 1
        self._most = max(self._most, rows)
        self._num_fresh += 1
        if seen < FRESH_STEPS or self._num_fresh > FRESH_STEPS:
            self._relative = []

    def seconds(self, rows: int) -> float:
        if not self._relative:
            self._relative, self._num_fresh = self._interpolated(), 0
        return math.exp(self._scale or 0.0) * self._relative[min(rows, ROWS_MAX) - 1]

    def _interpolated(self) -> list[float]:
        """Between what has been seen, and on by the slope from the first to the last."""
        costs = [math.exp(shape) for shape in self._shape]
        seen = [at for at in range(ROWS_MAX) if self._seen[at]]
        if not seen:
            return costs
        first, last = seen[0], seen[-1]
        rise = (costs[last] - costs[first]) / (last - first) if last > first else self._share * costs[first]
        rise = max(rise, LEAST_RISE * costs[first])
        within = np.interp(range(last + 1), seen, [costs[at] for at in seen]).tolist()
        return within + [costs[last] + rise * more for more in range(1, ROWS_MAX - last)]


class Offer(NamedTuple):
    """Guesses that could be computed: how many, how likely each is right (below 1), what making n takes (None: nothing)."""

    most: int
    chance: float
    cost_s: Callable[[int], float] | None


def best_lengths(
    offers: list[Offer], *, rows: int, room: int, seconds: Callable[[int], float], least_gain: float = LEAST_GAIN
) -> list[int]:
    """How much of each offer to take, so that most tokens come per second; nothing unless that is `least_gain` times as many.

    `rows` has the step without guesses, `room` is how many more it may have, `seconds` what a step of so many takes.
    """
    lengths, best = [0] * len(offers), [0] * len(offers)
    marginals = [offer.chance if offer.most > 0 else 0.0 for offer in offers]
    tokens, best_rate = float(rows), least_gain * rows / seconds(rows)
    if tokens + sum(chance / (1.0 - chance) for chance in marginals) <= best_rate * seconds(rows + 1):
        return best  # not even if they went on for ever
    for added in range(1, min(room, ROWS_MAX - rows) + 1):
        index = max(range(len(offers)), key=marginals.__getitem__)
        if marginals[index] < LEAST_MARGINAL:
            break
        tokens += marginals[index]
        lengths[index] += 1
        offer = offers[index]
        marginals[index] = marginals[index] * offer.chance if lengths[index] < offer.most else 0.0
        rate = tokens / (seconds(rows + added) + _guessing_s(offers, lengths))
        if rate > best_rate:
            best, best_rate = lengths.copy(), rate
    return best


def _guessing_s(offers: list[Offer], lengths: list[int]) -> float:
    """Guesses of several sequences are made together."""
    return max((offer.cost_s(length) for offer, length in zip(offers, lengths, strict=True) if offer.cost_s), default=0.0)
