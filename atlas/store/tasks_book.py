"""The truth about tasks: each change of state is one transaction of the ledger.

queued -> leased (taken by a worker) -> running (the worker was heard of) -> closed; what is lost or given back goes to queued
again. Whoever works on a task shows the number of its delivery, which must be the present one, so a worker that was thought dead
and wakes up changes nothing: its result is counted and not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from atlas.errors import BudgetExhausted, Conflict, RateLimited
from atlas.store.journal_values import (
    DAY_S,
    Delivery,
    Ending,
    Finish,
    Outcome,
    Quota,
    Submission,
    Submitted,
    Task,
)
from atlas.store.rules import clipped
from atlas.store.tables import task_days, task_steps, tasks
from atlas.store.tasks_blobs import Stored
from atlas.store.tasks_reports import OPEN, TaskReports, find, find_body, spent_today
from atlas.store.written import Written

HELD = ("leased", "running")
REASON_CHARS, WORKER_CHARS = 500, 64
BUSY_RETRY_S = 5.0  # chosen; when one of many open tasks may have ended
PRUNE_ROWS = 200  # deleted in one commit; chosen
KEEP_DAYS = 40  # of sandbox seconds per owner


# Made once, as those that read.
_INSERT = tasks.insert()
_UPDATE = tasks.update().where(tasks.c.id == sa.bindparam("of"))
_EARLIER = sa.select(tasks.c.id, tasks.c.request_sha256, tasks.c.kind).where(
    tasks.c.owner == sa.bindparam("whose"), tasks.c.idempotency_key == sa.bindparam("key")
)
_NUM_OPEN = sa.select(sa.func.count()).where(tasks.c.owner == sa.bindparam("whose"), tasks.c.state.in_(OPEN))


class Change(NamedTuple):
    """Whether a change was made, and the task as it is now; None if there is none of that id."""

    is_made: bool
    task: Task | None


class Taken(NamedTuple):
    """As Change, and where the body of a task is that was taken."""

    is_made: bool
    task: Task | None
    request: Stored


class Finished(NamedTuple):
    how: Finish
    task: Task | None


class TaskBook(TaskReports):
    """Tasks in the ledger. Safe from any thread; the futures are done when it is on the disk."""

    def submit(self, task_id: str, submission: Submission, *, request: Stored, digest: str, quota: Quota) -> Written[Submitted]:
        """Add a task, or find the one that this owner has submitted under the same key; `digest` is the body's SHA-256.

        The future raises:
            Conflict: the key was used for another body.
            RateLimited: the owner has as many open tasks as allowed.
            BudgetExhausted: the owner has used today's seconds of the sandbox.
        """

        def work(connection: sa.Connection) -> Submitted:
            if earlier := _earlier(connection, submission, digest):
                return Submitted(earlier, is_new=False)
            _check_quota(connection, submission.owner, quota, self._clock())
            task = _new(task_id, submission, self._clock())
            bodies = {"request": request.inline, "request_blob": request.blob, "request_sha256": digest}
            connection.execute(_INSERT, msgspec.structs.asdict(task) | bodies)
            return Submitted(task, is_new=True)

        return self._ledger.write(work)

    def take(self, delivery: Delivery, worker: str) -> Written[Taken]:
        """Make this the task's present delivery, if its number is the next and the task is waiting; expire an overdue task."""

        def work(connection: sa.Connection) -> Taken:
            task, now_s = find(connection, delivery.task_id), self._clock()
            if task is None or task.state != "queued" or task.delivery != delivery.number - 1:
                return Taken(False, task, Stored())
            if _is_overdue(task, now_s):
                return Taken(False, self._close(connection, task, "expired", _overdue(task)), Stored())
            values = {"state": "leased", "delivery": delivery.number, "leased_at": now_s, "not_before": None}
            task = _update(connection, task, {**values, "worker": clipped(worker, WORKER_CHARS)})
            return Taken(True, task, find_body(connection, task.id, "request") or Stored())

        return self._ledger.write(work)

    def begin(self, delivery: Delivery) -> Written[Change]:
        """Note that the worker is at work."""

        def work(connection: sa.Connection) -> Change:
            task = find(connection, delivery.task_id)
            if task is None or not _holds(task, delivery) or task.state == "running":
                return Change(False, task)
            return Change(True, _update(connection, task, {"state": "running"}))

        return self._ledger.write(work)

    def together(self) -> AbstractContextManager[object]:
        """As the ledger's."""
        return self._ledger.together()

    def finish(self, delivery: Delivery, ending: Ending, result: Stored) -> Written[Finished]:
        """Close the task with what its present delivery brought; count the result of any other."""

        def work(connection: sa.Connection) -> Finished:
            task = find(connection, delivery.task_id)
            if task is None:
                return Finished("fenced", None)
            if task.closed_by == delivery.number:
                return Finished("repeated", task)
            if not _holds(task, delivery):
                return Finished("fenced", _update(connection, task, {"num_fenced": task.num_fenced + 1}))
            self._charge(connection, task.owner, ending.sandbox_s)
            bodies = {"result": result.inline, "result_blob": result.blob}
            values = {"closed_by": delivery.number, "sandbox_s": ending.sandbox_s, **bodies}
            return Finished("closed", self._close(connection, task, ending.outcome, ending.reason, **values))

        return self._ledger.write(work)

    def give_back(self, delivery: Delivery, *, reason: str, delay_s: float = 0.0, is_excused: bool = False) -> Written[Change]:
        """Put the task back, or close it if nobody wants it any more or it had all its deliveries."""

        def work(connection: sa.Connection) -> Change:
            task, now_s = find(connection, delivery.task_id), self._clock()
            if task is None or not _holds(task, delivery):
                return Change(False, task)
            excused = task.excused + is_excused
            if end := _end_of(task, task.delivery - excused, reason, now_s + delay_s):
                return Change(True, self._close(connection, task, *end))
            not_before = now_s + delay_s if delay_s > 0 else None
            values = {"state": "queued", "excused": excused, "not_before": not_before, "reason": _short(reason)}
            return Change(True, _update(connection, task, values))

        return self._ledger.write(work)

    def cancel(self, task_id: str, reason: str) -> Written[Change]:
        """Close a task that waits; ask the worker of one that runs."""

        def work(connection: sa.Connection) -> Change:
            task = find(connection, task_id)
            if task is None or task.is_closed:
                return Change(False, task)
            if task.state == "queued":
                return Change(True, self._close(connection, task, "cancelled", reason, is_cancel_requested=True))
            return Change(True, _update(connection, task, {"is_cancel_requested": True, "reason": _short(reason)}))

        return self._ledger.write(work)

    def expire_overdue(self) -> list[Task]:
        """Close waiting tasks whose deadline has passed; those that were closed. Waits for the ledger."""
        overdue = sa.select(tasks.c.id).where(tasks.c.state == "queued", tasks.c.deadline < self._clock()).limit(PRUNE_ROWS)
        if not self._ledger.read(lambda connection: connection.scalars(overdue).first()):
            return []

        def work(connection: sa.Connection) -> list[Task]:
            found = [find(connection, task_id) for task_id in connection.scalars(overdue).all()]
            return [self._close(connection, task, "expired", _overdue(task)) for task in found if task is not None]

        return self._ledger.write(work).result()

    def put_step(self, delivery: Delivery, step: str, result: Stored) -> Written[bool]:
        """Keep the result of a finished step; False, and nothing is kept, if the delivery is over. The first result stays."""

        def work(connection: sa.Connection) -> bool:
            task = find(connection, delivery.task_id)
            if task is None or not _holds(task, delivery):
                return False
            row = {"task_id": task.id, "step": step, "at": self._clock(), "result": result.inline, "result_blob": result.blob}
            connection.execute(self._ledger.database.insert(task_steps).values(**row).on_conflict_do_nothing())
            return True

        return self._ledger.write(work)

    def accept(self, task_id: str, body: Stored) -> Written[Change]:
        """Keep what the user made of a closed task's result, in place of an earlier one."""

        def work(connection: sa.Connection) -> Change:
            task = find(connection, task_id)
            if task is None or not task.is_closed:
                return Change(False, task)
            values = {"accepted_at": self._clock(), "accepted": body.inline, "accepted_blob": body.blob}
            return Change(True, _update(connection, task, values))

        return self._ledger.write(work)

    def prune(self) -> int:
        """Delete tasks that need not be kept any longer, a few at a time; how many. Waits for the ledger."""
        now_s = self._clock()
        oldest = sa.select(tasks.c.id).where(tasks.c.expires_at < now_s).limit(PRUNE_ROWS)

        def work(connection: sa.Connection) -> int:
            doomed = connection.scalars(oldest).all()
            connection.execute(task_steps.delete().where(task_steps.c.task_id.in_(doomed)))
            return connection.execute(tasks.delete().where(tasks.c.id.in_(doomed))).rowcount if doomed else 0

        total = 0
        while num_deleted := self._ledger.write(work).result():
            total += num_deleted
        old_days = task_days.delete().where(task_days.c.day < int(now_s // DAY_S) - KEEP_DAYS)
        self._ledger.write(lambda connection: connection.execute(old_days).rowcount).result()
        return total

    def _close(self, connection: sa.Connection, task: Task, outcome: Outcome, reason: str, **values: Any) -> Task:
        now_s = self._clock()
        ended = {"state": "closed", "outcome": outcome, "reason": _short(reason), "closed_at": now_s}
        return _update(connection, task, {**ended, "expires_at": now_s + task.result_ttl_s, **values})

    def _charge(self, connection: sa.Connection, owner: str, sandbox_s: float) -> None:
        if sandbox_s > 0:
            connection.execute(self._add_day, {"owner": owner, "day": int(self._clock() // DAY_S), "sandbox_s": sandbox_s})

    @cached_property
    def _add_day(self) -> Any:  # an INSERT of either dialect
        add = self._ledger.database.insert(task_days)
        total = {"sandbox_s": task_days.c.sandbox_s + add.excluded.sandbox_s}
        return add.on_conflict_do_update(index_elements=("owner", "day"), set_=total)


def _new(task_id: str, submission: Submission, now_s: float) -> Task:
    return Task(
        id=task_id,
        owner=submission.owner,
        key_id=submission.key_id,
        kind=submission.kind,
        priority=submission.priority,
        state="queued",
        idempotency_key=submission.idempotency_key or None,
        max_deliveries=submission.max_deliveries,
        created_at=now_s,
        not_before=now_s + submission.delay_s if submission.delay_s > 0 else None,
        deadline=submission.deadline,
        result_ttl_s=submission.result_ttl_s,
    )


def _earlier(connection: sa.Connection, submission: Submission, digest: str) -> Task | None:
    if not submission.idempotency_key:
        return None
    row = connection.execute(_EARLIER, {"whose": submission.owner, "key": submission.idempotency_key}).one_or_none()
    if row is None:
        return None
    if (row.request_sha256, row.kind) != (digest, submission.kind):
        raise Conflict(
            f"task {row.id} was submitted under this idempotency key with another body; use a key of its own for each task"
        )
    return find(connection, row.id)


def _check_quota(connection: sa.Connection, owner: str, quota: Quota, now_s: float) -> None:
    if quota.open_tasks is not None and (used := connection.scalar(_NUM_OPEN, {"whose": owner}) or 0) >= quota.open_tasks:
        raise RateLimited(
            f"{used} tasks of this user are open, and {quota.open_tasks} may be; wait for one to end, or cancel one",
            retry_after_s=BUSY_RETRY_S,
        )
    if quota.sandbox_s_per_day is not None:
        spent_s = spent_today(connection, owner, now_s)
        if spent_s >= quota.sandbox_s_per_day:
            again = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            raise BudgetExhausted(
                f"this user's tasks have used {spent_s:.0f} s of the sandbox today, and {quota.sandbox_s_per_day:.0f} s are "
                f"allowed; it starts again at {again:%Y-%m-%d %H:%M} UTC",
                retry_after_s=again.timestamp() - now_s,
            )


def _update(connection: sa.Connection, task: Task, values: Mapping[str, Any]) -> Task:
    connection.execute(_UPDATE, {**values, "of": task.id})
    return msgspec.structs.replace(task, **{name: value for name, value in values.items() if name in Task.__struct_fields__})


def _holds(task: Task, delivery: Delivery) -> bool:
    return task.state in HELD and task.delivery == delivery.number


def _end_of(task: Task, num_counted: int, reason: str, again_at: float) -> tuple[Outcome, str] | None:
    """Why a task that comes back is not tried again."""
    if task.is_cancel_requested:
        return "cancelled", task.reason
    if num_counted >= task.max_deliveries:
        return "dead", f"given up after {num_counted} of {task.max_deliveries} deliveries; the last: {reason}"
    return ("expired", _overdue(task)) if _is_overdue(task, again_at) else None


def _is_overdue(task: Task, now_s: float) -> bool:
    return task.deadline is not None and task.deadline < now_s


def _overdue(task: Task) -> str:
    assert task.deadline is not None
    return f"its deadline, {datetime.fromtimestamp(task.deadline, UTC):%Y-%m-%d %H:%M:%S} UTC, passed before it was done"


def _short(reason: str) -> str:
    return clipped(reason, REASON_CHARS)
