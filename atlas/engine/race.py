"""Which candidates to have under way at once, where the first good one ends the others.

Where a step takes as long as its rows (a CPU), a good answer is had sooner if few are under way; where it takes as long as
reading the weights (a GPU), the others come for nothing. What a step of so many rows takes is measured (gain.py). The chance that
a candidate is good is, by Laplace's rule of succession, 1 in 2 plus those that have ended without ending the race.

Candidates that have said the same so far share a row, and go on or pause together. Those go first of which there are most: what
is drawn often is likelier good (self-consistency, https://arxiv.org/abs/2203.11171); then those that have come furthest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from atlas.engine.gain import RowCosts
from atlas.engine.sequence import Job, Sequence

MAX_LEFT = 32  # of more, all run: the choice takes the square of their number, 0.1 ms here
REMEMBERED_STEPS = 64  # a width is computed anew after so many; row costs change more slowly (chosen)

Row = tuple[Sequence, ...]  # candidates of one prompt that have said the same so far


class Race:
    """Pauses and resumes the candidates of races. Owned by the engine thread.

    Args:
        costs: of rows, as they are learnt.
    """

    def __init__(self, costs: RowCosts) -> None:
        self._costs = costs
        self._widths: dict[tuple[int, int, int], int] = {}
        self._age = 0

    def chosen(self, rows: list[Row]) -> list[Row]:
        """Those that run in the next step: all that are in no race, and of each race those that win it soonest."""
        races: dict[Job, list[Row]] = defaultdict(list)
        for row in rows:
            if row[0].job.prompt.is_race:
                races[row[0].job].append(row)
        if not races or not self._costs.is_known:
            return rows
        self._forget()
        others = len(rows) - sum(map(len, races.values())) + len(races) - 1
        for job, racing in races.items():
            racing.sort(key=lambda row: (len(row), row[0].length), reverse=True)
            most = self._width(len(racing), job.num_ended, others)
            for at, row in enumerate(racing):
                for sequence in row:
                    sequence.is_paused = at >= most
        return [row for row in rows if not row[0].is_paused]

    def _width(self, left: int, ended: int, others: int) -> int:
        case = left, ended, others
        if case not in self._widths:
            self._widths[case] = width(left, ended=ended, others=others, seconds=self._costs.seconds)
        return self._widths[case]

    def _forget(self) -> None:
        self._age += 1
        if self._age % REMEMBERED_STEPS == 0:
            self._widths.clear()


def width(left: int, *, ended: int, others: int, seconds: Callable[[int], float]) -> int:
    """How many of the rows should run, 1 at least, for the race to be over soonest: won, or lost by all of them.

    As if those that run together ended together, and all answers were equally long.

    Args:
        left: different candidates that have not ended.
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
