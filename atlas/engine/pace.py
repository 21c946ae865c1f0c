"""How much of a prompt a step computes while answers are running: as much as leaves their tokens within a target time.

What a prompt's token costs is learnt from the steps there were. On a slow machine a prompt gets as much time as the tokens beside
it, if that is more than the target leaves: it must be done some day as well.
"""

from __future__ import annotations

from atlas.engine.gain import RowCosts

LEAST_TOKENS = 64  # of prompts in a step, however slow the machine: fewer cost three times as much each (docs/log.md)
LEAST_NOTED = 32  # of fewer, most of the time is the step's own
RATE = 0.3  # weight of the newest step in the running mean; chosen: attention makes later tokens of a prompt dearer


class Pace:
    """Owned by the engine thread.

    Args:
        costs: what a step takes without a prompt in it.
        most_tokens: in one step, however fast the machine is, and until its speed is known.
        step_s: how long a step should take at most.
    """

    def __init__(self, costs: RowCosts, *, most_tokens: int, step_s: float) -> None:
        self._costs = costs
        self._most_tokens = most_tokens
        self._step_s = step_s
        self._token_s: float | None = None

    def note(self, tokens: int, *, rows: int, seconds: float) -> None:
        """A step with so many tokens of prompts, and rows beside them, took that long."""
        if tokens < LEAST_NOTED:
            return
        token_s = max(0.0, seconds - self._rows_s(rows)) / tokens
        self._token_s = token_s if self._token_s is None else self._token_s + RATE * (token_s - self._token_s)

    def tokens(self, rows: int) -> int:
        """How many tokens of prompts a step may have beside so many rows."""
        rows_s = self._rows_s(rows)
        spare_s = max(self._step_s - rows_s, rows_s)
        if not self._token_s or spare_s >= self._most_tokens * self._token_s:
            return self._most_tokens
        return min(self._most_tokens, max(LEAST_TOKENS, int(spare_s / self._token_s)))

    def _rows_s(self, rows: int) -> float:
        return self._costs.seconds(rows) if rows and self._costs.is_known else 0.0
