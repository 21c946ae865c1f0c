"""What is left of the budgets of the one who looks."""

from __future__ import annotations

from typing import NamedTuple

from atlas.dashboard.view import View
from atlas.errors import LimitsUnavailable
from atlas.types import Limits


class Budget(NamedTuple):
    """One budget; `share` is used / limit, at most 1. `kind` is tokens or cost (millionths)."""

    kind: str
    period: str
    limit: int
    used: int
    share: float


async def budgets_of(view: View) -> tuple[Budget, ...] | None:
    """None when they cannot be read just now; empty when there are none."""
    live, who = view.deps.live, view.who
    if live is None or who.user_limits == Limits():
        return ()
    try:
        remaining = await live.remaining(who.owner, "", who.user_limits, Limits())
    except LimitsUnavailable:
        return None
    return tuple(
        Budget(found.kind, found.period, found.limit, found.used, min(1.0, found.used / found.limit if found.limit else 1.0))
        for found in remaining.budgets
        if found.whose == "user"
    )
