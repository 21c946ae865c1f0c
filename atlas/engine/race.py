"""How many candidates to have under way at once, where the first good one ends the others.

Where a step takes as long as its rows (a CPU), a good answer is had sooner if few are under way; where it takes as long as
reading the weights (a GPU), the others come for nothing. What a step of so many rows takes is measured (gain.py). The chance that
a candidate is good is, by Laplace's rule of succession, 1 in 2 plus those that have ended without ending the race.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_LEFT = 32  # of more, all run: the choice takes the square of their number, 0.1 ms here


def width(left: int, *, ended: int, others: int, seconds: Callable[[int], float]) -> int:
    """How many of the candidates should run, 1 at least, for the race to be over soonest: won, or lost by all of them.

    As if those that run together ended together, and all answers were equally long.

    Args:
        left: candidates that have not ended.
        ended: candidates that have.
        others: rows of a step that are not of this race.
        seconds: what a step of so many rows takes.
    """
    if left > MAX_LEFT:
        return left
    expected_s, widths = [0.0], [0]  # by how many are left
    for remaining in range(1, left + 1):
        gone = ended + left - remaining

        def race_s(running: int, gone: int = gone, remaining: int = remaining) -> float:
            lost = (gone + 1) / (gone + running + 1)  # the chance that none of them is good
            return seconds(others + running) + lost * expected_s[remaining - running]

        best = min(range(1, remaining + 1), key=lambda running: (race_s(running), -running))
        expected_s.append(race_s(best))
        widths.append(best)
    return widths[left]
