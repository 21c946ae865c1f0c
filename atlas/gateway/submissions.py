"""What is asked to be solved, as it goes into the journal, and what the settings say of it."""

from __future__ import annotations

import msgspec

from atlas.ralph import SOLVE
from atlas.settings import TaskSettings
from atlas.store import Quota, Submission
from atlas.types import Principal, Request, Route


def solve_submission(
    request: Request,
    who: Principal,
    settings: TaskSettings,
    *,
    priority: int = 1,
    idempotency_key: str = "",
    deadline: float | None = None,
) -> Submission:
    """A request as a task of whoever asks; `deadline` in Unix seconds is when it is not begun any more."""
    return Submission(
        owner=who.owner,
        key_id=who.key_id,
        body=msgspec.json.encode(request),
        kind=SOLVE,
        priority=priority,
        idempotency_key=idempotency_key,
        deadline=deadline,
        result_ttl_s=settings.result_ttl_s,
    )


def quota_of(settings: TaskSettings) -> Quota:
    """What one user may have; 0 in the settings is no limit."""
    return Quota(open_tasks=settings.open_tasks or None, sandbox_s_per_day=settings.sandbox_s_per_day or None)


def fixed_route(settings: TaskSettings) -> Route:
    """The effort for every request that names none."""
    return Route(k=settings.k, max_attempts=settings.max_attempts, temperature=settings.temperature)
