"""What a limit that is reached means for the person who asked: which one, whose, and when to try again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from atlas.errors import BudgetExhausted, RateLimited

BUSY_RETRY_S = 1.0  # nobody knows when a running request ends (chosen)


class Reached(NamedTuple):
    """One limit in the way; `wait_s` is when it lets such a request in, if nothing else happens."""

    whose: str
    limit: str
    value: int
    used: int
    wait_s: float


def refusal(words: Sequence[str], *, at_s: float) -> RateLimited:
    """The error for what admit.lua replied at server time `at_s`: five words for each limit in the way.

    The one that takes longest is named, since nothing is admitted before it.
    """
    reached = [_reached(words[start : start + 5], at_s) for start in range(0, len(words), 5)]
    worst = max(reached, key=lambda limit: limit.wait_s)
    whose, name, value, used, wait_s = worst
    if _is_budget(name):
        again = datetime.fromtimestamp(at_s + wait_s, UTC)
        return BudgetExhausted(
            f"{name} of this {whose} is used up: {used} of {value}, and this request needs more than is left; "
            f"it starts again at {again:%Y-%m-%d %H:%M} UTC",
            retry_after_s=wait_s,
        )
    return RateLimited(
        f"{name} of this {whose} is reached: {used} of {value} in use; try again in {wait_s:.1f} s", retry_after_s=wait_s
    )


def _reached(words: Sequence[str], at_s: float) -> Reached:
    whose, name, value, used, wait_us = words
    wait_s = _end_of_period(name, at_s) - at_s if _is_budget(name) else int(wait_us) / 1e6 or BUSY_RETRY_S
    return Reached(whose, name, int(value), int(used), wait_s)


def _is_budget(limit: str) -> bool:
    return limit.endswith(("_day", "_month"))


def _end_of_period(limit: str, at_s: float) -> float:
    today = datetime.fromtimestamp(at_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if limit.endswith("_day"):
        return (today + timedelta(days=1)).timestamp()
    return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()
