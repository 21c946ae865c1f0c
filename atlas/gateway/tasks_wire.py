"""Tasks as HTTP has them. Times are Unix seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from atlas.gateway.wire import Wire
from atlas.ralph import Correction, TaskRequest, TaskResult
from atlas.store import Outcome, Task, TaskState
from atlas.types import Request, Run

PriorityName = Literal["p0", "p1", "p2"]
PRIORITY_NAMES: tuple[PriorityName, PriorityName, PriorityName] = ("p0", "p1", "p2")


class TaskBody(TaskRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task, how urgent it is, and how it is answered."""

    priority: Annotated[PriorityName | None, Meta(description="p0 needs the scope `interactive`; p1 by default")] = None
    stream: Annotated[bool, Meta(description="Answer with the task's events, as its `events` do, until it is closed")] = False


class TaskReply(Wire):
    """A task as the journal has it, without its texts.

    Attributes:
        outcome: done (read the result's verdict), failed (it cannot be right, or no budget is left), cancelled, dead (it
            failed through us), expired; null while open.
        num_deliveries: how often it was handed to a worker.
        sandbox_s: of its tests, once it is closed.
    """

    id: str
    owner: str
    key_id: str
    state: TaskState
    outcome: Outcome | None
    reason: str
    priority: PriorityName
    created_at: float
    leased_at: float | None
    closed_at: float | None
    accepted_at: float | None
    expires_at: float | None
    is_cancel_requested: bool
    num_deliveries: int
    sandbox_s: float
    object: Literal["task"] = "task"


class TaskDetail(TaskReply, kw_only=True):
    """With its texts, for its owner.

    Attributes:
        request: what was asked for.
        result: null until it is closed, and where it was ended before there was one.
        run: everything that was done, if the query says `full=true`.
        accepted: what the user made of the result.
    """

    request: Request
    result: TaskResult | None
    run: Run | None = None
    accepted: Correction | None = None


class TaskList(Wire):
    """The newest first; `cursor` continues, and is empty at the end."""

    data: list[TaskReply]
    cursor: str
    object: Literal["list"] = "list"


class TaskClosedEvent(Wire):
    """The last event of every task's stream; `result` and `run` as in TaskDetail."""

    task: TaskReply
    result: TaskResult | None
    run: Run | None
    event: Literal["task.closed"] = "task.closed"


# -- V1 --

V1State = Literal["pending", "running", "completed", "failed"]


class V1Submission(msgspec.Struct, kw_only=True):
    """As ATLAS 1 took it: unknown fields are passed over, and `type`, `project_id` and `require_tests_pass` change nothing."""

    prompt: Annotated[str, Meta(min_length=1, max_length=200_000)]
    type: str = "code_generation"
    priority: PriorityName = "p1"
    project_id: str | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=50)] = 5
    require_tests_pass: bool = True
    test_code: Annotated[str, Meta(max_length=200_000)] | None = None


class V1Submitted(Wire):
    task_id: str
    status: V1State


class V1Result(Wire):
    """`success` is true only if given tests passed; in ATLAS 1 it also was where no test had run."""

    success: bool
    stop_reason: str
    final_code: str
    attempts_count: int
    total_duration_ms: int
    total_tokens: int


class V1Status(Wire):
    """`completed_at` is ISO 8601."""

    id: str
    status: V1State
    attempts: int
    result: V1Result | None
    completed_at: str | None


class QueueStats(Wire):
    """One's own waiting tasks; an administrator's are everybody's."""

    p0_waiting: int
    p1_waiting: int
    p2_waiting: int
    total_waiting: int


def fields_of(task: Task) -> dict[str, Any]:
    """The fields of a TaskReply."""
    return {
        "id": task.id,
        "owner": task.owner,
        "key_id": task.key_id,
        "state": task.state,
        "outcome": task.outcome,
        "reason": task.reason,
        "priority": PRIORITY_NAMES[task.priority],
        "created_at": task.created_at,
        "leased_at": task.leased_at,
        "closed_at": task.closed_at,
        "accepted_at": task.accepted_at,
        "expires_at": task.expires_at,
        "is_cancel_requested": task.is_cancel_requested,
        "num_deliveries": task.delivery,
        "sandbox_s": task.sandbox_s,
    }


def to_task(task: Task) -> TaskReply:
    return TaskReply(**fields_of(task))
