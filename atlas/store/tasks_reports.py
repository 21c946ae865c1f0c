"""What the ledger knows about tasks, read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import sqlalchemy as sa

from atlas.errors import BadRequest
from atlas.store.journal_values import DAY_S, PRIORITIES, Task, TaskFilter, TaskPage, TaskStats
from atlas.store.ledger import Ledger
from atlas.store.tables import task_days, task_steps, tasks
from atlas.store.tasks_blobs import Stored

OPEN = ("queued", "leased", "running")
SUMMARY = [tasks.c[name] for name in Task.__struct_fields__]  # a list of tasks does not read their bodies
BODIES = {"request": (tasks.c.request, tasks.c.request_blob), "result": (tasks.c.result, tasks.c.result_blob)}
BODIES["accepted"] = (tasks.c.accepted, tasks.c.accepted_blob)
# Made once: making a statement anew takes several times as long as running it.
_FIND = sa.select(*SUMMARY).where(tasks.c.id == sa.bindparam("of"))
_BODIES = {which: sa.select(*columns).where(tasks.c.id == sa.bindparam("of")) for which, columns in BODIES.items()}
_SPENT = sa.select(task_days.c.sandbox_s).where(
    task_days.c.owner == sa.bindparam("whose"), task_days.c.day == sa.bindparam("when")
)
MAX_PAGE = 1000
ID_BATCH = 500  # parameters of one statement


class TaskReports:
    """The reading half of the book of tasks."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._clock = clock

    def get(self, task_id: str) -> Task | None:
        """One task; None if there is none of that id."""
        return self._ledger.read(lambda connection: find(connection, task_id))

    def body(self, task_id: str, which: str) -> Stored | None:
        """Where the `request`, `result` or `accepted` body of a task is; None if there is no such task."""
        return self._ledger.read(lambda connection: find_body(connection, task_id, which))

    def steps(self, task_id: str) -> dict[str, Stored]:
        """Finished steps, in the order in which they were finished."""
        query = sa.select(task_steps.c.step, task_steps.c.result, task_steps.c.result_blob)
        query = query.where(task_steps.c.task_id == task_id).order_by(task_steps.c.at, task_steps.c.step)
        return self._ledger.read(lambda connection: {row[0]: Stored(row[1], row[2]) for row in connection.execute(query)})

    def page(self, wanted: TaskFilter, *, limit: int = 100, cursor: str = "") -> TaskPage:
        """Tasks that fit, the newest first.

        Raises:
            BadRequest: `cursor` is none that was given out.
        """
        limit = min(max(limit, 1), MAX_PAGE)
        query = _filtered(wanted)
        if cursor:
            at, task_id = _position(cursor)
            query = query.where(tasks.c.created_at <= at, sa.tuple_(tasks.c.created_at, tasks.c.id) < sa.tuple_(at, task_id))
        query = query.order_by(tasks.c.created_at.desc(), tasks.c.id.desc()).limit(limit + 1)
        found = self._tasks(query)
        last = found[limit - 1] if len(found) > limit else None
        return TaskPage(tasks=tuple(found[:limit]), cursor=f"{last.created_at!r}:{last.id}" if last else "")

    def open_tasks(self) -> list[Task]:
        """All that are not closed, the oldest first."""
        return self._tasks(sa.select(*SUMMARY).where(tasks.c.state.in_(OPEN)).order_by(tasks.c.created_at, tasks.c.id))

    def known(self, task_ids: Collection[str]) -> set[str]:
        """Which of these there are."""
        names, found = list(task_ids), set[str]()
        for start in range(0, len(names), ID_BATCH):
            query = sa.select(tasks.c.id).where(tasks.c.id.in_(names[start : start + ID_BATCH]))
            found |= self._ledger.read(lambda connection, query=query: set(connection.scalars(query)))  # type: ignore[misc]  # mypy knows no defaults in lambdas
        return found

    def stats(self, *, owner: str | None = None, kind: str | None = None) -> TaskStats:
        """Counts, of all tasks or of one owner or kind."""
        counts = [sa.func.count(), sa.func.sum(tasks.c.num_fenced), sa.func.min(tasks.c.created_at)]
        columns = (tasks.c.state, tasks.c.priority, tasks.c.outcome)
        query = sa.select(*columns, *counts).group_by(*columns)
        wanted = {"owner": owner, "kind": kind}
        query = query.where(*(tasks.c[name] == value for name, value in wanted.items() if value is not None))
        return _stats(self._ledger.read(lambda connection: connection.execute(query).all()), self._clock())

    def sandbox_s(self, owner: str) -> float:
        """What an owner has used today (UTC)."""
        return self._ledger.read(lambda connection: spent_today(connection, owner, self._clock()))

    def _tasks(self, query: sa.Select[Any]) -> list[Task]:
        return self._ledger.read(lambda connection: [Task(**row) for row in connection.execute(query).mappings()])


def find(connection: sa.Connection, task_id: str) -> Task | None:
    """As the method `get`, in the caller's transaction."""
    row = connection.execute(_FIND, {"of": task_id}).mappings().one_or_none()
    return None if row is None else Task(**row)


def find_body(connection: sa.Connection, task_id: str, which: str) -> Stored | None:
    """As the method `body`, in the caller's transaction."""
    row = connection.execute(_BODIES[which], {"of": task_id}).one_or_none()
    return None if row is None else Stored(*row)


def spent_today(connection: sa.Connection, owner: str, now_s: float) -> float:
    """As the method `sandbox_s`, in the caller's transaction."""
    return connection.scalar(_SPENT, {"whose": owner, "when": int(now_s // DAY_S)}) or 0.0


def _filtered(wanted: TaskFilter) -> sa.Select[Any]:
    values = {"owner": wanted.owner, "state": wanted.state, "kind": wanted.kind, "outcome": wanted.outcome}
    query = sa.select(*SUMMARY).where(*(tasks.c[name] == value for name, value in values.items() if value is not None))
    return query if wanted.since is None else query.where(tasks.c.created_at >= wanted.since)


def _position(cursor: str) -> tuple[float, str]:
    at, _, task_id = cursor.partition(":")
    try:
        return float(at), task_id
    except ValueError:
        raise BadRequest("no such cursor; use one that a list has returned, as it is", param="cursor") from None


def _stats(rows: Iterable[Any], now_s: float) -> TaskStats:
    """Of rows as `stats` selects them."""
    queued, states, outcomes = [0] * len(PRIORITIES), {"leased": 0, "running": 0}, dict[str, int]()
    num_fenced, oldest = 0, now_s
    for state, priority, outcome, number, fenced, first in rows:
        num_fenced += int(fenced)
        if state == "queued":
            queued[priority] += number
            oldest = min(oldest, first)
        elif state == "closed":
            outcomes[outcome] = outcomes.get(outcome, 0) + number
        else:
            states[state] += number
    return TaskStats(
        queued=(queued[0], queued[1], queued[2]),
        outcomes=outcomes,
        num_fenced=num_fenced,
        oldest_queued_s=now_s - oldest,
        **states,
    )
