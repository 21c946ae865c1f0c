"""The task routes of ATLAS 1, in its shapes, over the same journal; `success` is honest, and tests that are sent are run."""

from __future__ import annotations

from litestar import get, post
from litestar.params import FromPath, JSONBody

from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.openapi import replies
from atlas.gateway.portal import caller_of, is_administrator
from atlas.gateway.portal_wire import moment
from atlas.gateway.tasks import READING, STATUSES
from atlas.gateway.tasks_desk import checked_request, journal_of, own_task, run_of, submit, task_priority
from atlas.gateway.tasks_wire import QueueStats, V1Result, V1State, V1Status, V1Submission, V1Submitted
from atlas.ralph import SOLVE, TaskRequest, TaskResult
from atlas.store import Task
from atlas.types import Run

# V1's words for why a run ended.
STOP_REASONS = {"deadline": "timeout", "failure": "error"}


@post(
    "/v1/tasks/submit",
    status_code=200,
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="Submit a task, as ATLAS 1 had it",
    responses=replies(V1Submitted, STATUSES),
)
async def submit_v1(request: HTTPRequest, data: JSONBody[V1Submission]) -> V1Submitted:
    exchange = exchange_of(request)
    priority = task_priority(exchange, data.priority)
    asked = TaskRequest(task=data.prompt, tests=data.test_code or "", max_attempts=data.max_attempts)
    task, _ = await submit(exchange, await checked_request(exchange, asked), priority=priority)
    return V1Submitted(task_id=task.id, status="pending")


@get(
    "/v1/tasks/{task_id:str}/status",
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="How a task stands, as ATLAS 1 had it",
    responses=replies(V1Status, READING),
)
async def status_v1(request: HTTPRequest, task_id: FromPath[str]) -> V1Status:
    exchange = exchange_of(request)
    task = await own_task(exchange, task_id)
    run = await run_of(journal_of(exchange), task)
    return V1Status(
        id=task.id,
        status=status_word(task, run),
        attempts=len(run.attempts) if run else 0,
        result=to_result(run) if run else None,
        completed_at=moment(task.closed_at).isoformat() if task.closed_at is not None else None,
    )


@get(
    "/v1/queue/stats",
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="How many tasks wait, as ATLAS 1 had it",
    responses=replies(QueueStats, (400, 401, 403, 503)),
)
async def queue_stats(request: HTTPRequest) -> QueueStats:
    exchange = exchange_of(request)
    who = caller_of(exchange)
    stats = await journal_of(exchange).stats(owner=None if is_administrator(who) else who.owner, kind=SOLVE)
    p0, p1, p2 = stats.queued
    return QueueStats(p0_waiting=p0, p1_waiting=p1, p2_waiting=p2, total_waiting=p0 + p1 + p2)


def status_word(task: Task, run: Run | None) -> V1State:
    if not task.is_closed:
        return "pending" if task.state == "queued" else "running"
    return "completed" if run is not None and is_success(run) else "failed"


def is_success(run: Run) -> bool:
    return TaskResult.of(run).success


def to_result(run: Run) -> V1Result:
    return V1Result(
        success=is_success(run),
        stop_reason="success" if is_success(run) else STOP_REASONS.get(run.ended_by, run.ended_by),
        final_code=run.code,
        attempts_count=len(run.attempts),
        total_duration_ms=round(run.wall_s * 1000),
        total_tokens=run.num_tokens,
    )
