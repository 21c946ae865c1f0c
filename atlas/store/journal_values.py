"""What goes into the task journal and what comes back: values only.

Times are Unix seconds. Bodies (requests, results, events) are bytes that the journal does not look into.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from atlas.types import Value

TaskState = Literal["queued", "leased", "running", "closed"]
Outcome = Literal["done", "failed", "cancelled", "dead", "expired"]
Standing = Literal["held", "cancelled", "lost"]
Finish = Literal["closed", "repeated", "fenced"]

PRIORITIES = (0, 1, 2)  # interactive, ordinary, batch
LAST_NUMBER = 2**53 - 1  # of the event that ends every task, so that a client who has seen it is told nothing more
DAY_S = 86_400.0


class Submission(Value, frozen=True, kw_only=True):
    """A task as it is asked for.

    Attributes:
        kind: which workers it is for: "solve", later "index", "bench", ...
        priority: 0 (interactive), 1, 2 (batch).
        idempotency_key: the same key and body of an owner are the same task; empty for none.
        max_deliveries: how many workers may get it before it is given up as dead.
        delay_s: before it may begin.
        deadline: after it, it is not begun any more.
        result_ttl_s: how long everything about it is kept once it is closed.
    """

    owner: str
    body: bytes
    key_id: str = ""
    kind: str = "solve"
    priority: int = 1
    idempotency_key: str = ""
    max_deliveries: int = 3
    delay_s: float = 0.0
    deadline: float | None = None
    result_ttl_s: float = 30 * DAY_S


class Quota(Value, frozen=True, kw_only=True):
    """What one owner may have; None is no limit.

    Attributes:
        open_tasks: waiting and running ones.
        sandbox_s_per_day: per UTC day; counted when a task is finished, and begun tasks are not stopped by it.
    """

    open_tasks: int | None = None
    sandbox_s_per_day: float | None = None


class Task(Value, frozen=True, kw_only=True):
    """What the ledger says about a task, without its bodies.

    Attributes:
        delivery: how often it was handed to a worker; the number of the present one.
        excused: how many of these do not count, since nothing of the task was done.
        leased_at: beginning of the present delivery, or of the last.
        not_before: when it may be tried again.
        worker: who has it, or had it last.
        closed_by: the delivery whose finish closed it; None if the journal closed it itself.
        num_fenced: results that came from deliveries which were over, and were not stored.
        sandbox_s: used by the delivery that closed it.
        expires_at: when it may be deleted.
    """

    id: str
    owner: str
    key_id: str
    kind: str
    priority: int
    state: TaskState
    created_at: float
    max_deliveries: int
    result_ttl_s: float
    idempotency_key: str | None = None
    delivery: int = 0
    excused: int = 0
    leased_at: float | None = None
    closed_at: float | None = None
    not_before: float | None = None
    deadline: float | None = None
    worker: str = ""
    outcome: Outcome | None = None
    reason: str = ""
    closed_by: int | None = None
    is_cancel_requested: bool = False
    sandbox_s: float = 0.0
    num_fenced: int = 0
    accepted_at: float | None = None
    expires_at: float | None = None

    @property
    def is_closed(self) -> bool:
        return self.state == "closed"


class Submitted(NamedTuple):
    """A task, and whether this submission made it."""

    task: Task
    is_new: bool


class Delivery(Value, frozen=True, kw_only=True):
    """One handing-over of a task to a worker: what a worker has to show with everything it says about the task."""

    task_id: str
    number: int


class Lease(Value, frozen=True, kw_only=True):
    """A task for a worker.

    Attributes:
        body: of the submission.
        lease_s: a worker that is not heard of for so long has lost the task.
    """

    task: Task
    delivery: Delivery
    body: bytes
    lease_s: float


class Ending(Value, frozen=True, kw_only=True):
    """What a worker has to say in the end.

    Attributes:
        sandbox_s: charged to the owner's day.
    """

    outcome: Literal["done", "failed", "cancelled"]
    reason: str = ""
    result: bytes = b""
    sandbox_s: float = 0.0


class TaskEvent(Value, frozen=True, kw_only=True):
    """Something that happened while a task ran; numbers rise, and mostly by one."""

    number: int
    at: float
    body: bytes


class TaskClosed(Value, frozen=True, kw_only=True):
    """The last event of every task, made from what the ledger has.

    Attributes:
        result: what its worker brought, if that is at hand; else to be read.
    """

    task: Task
    number: int = LAST_NUMBER
    result: bytes | None = None


class TaskFilter(Value, frozen=True, kw_only=True):
    """Which tasks to list; None is all."""

    owner: str | None = None
    state: TaskState | None = None
    kind: str | None = None
    outcome: Outcome | None = None
    since: float | None = None


class TaskPage(Value, frozen=True, kw_only=True):
    """Tasks, the newest first; `cursor` continues, and is empty at the end."""

    tasks: tuple[Task, ...] = ()
    cursor: str = ""


class TaskStats(Value, frozen=True, kw_only=True):
    """Counts of the tasks that are kept.

    Attributes:
        queued: waiting, by priority 0, 1, 2.
        outcomes: closed ones.
        num_fenced: results of lost deliveries.
        oldest_queued_s: how long the first of those that wait has waited.
    """

    queued: tuple[int, int, int] = (0, 0, 0)
    leased: int = 0
    running: int = 0
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    num_fenced: int = 0
    oldest_queued_s: float = 0.0
