"""/v1/tasks: have something solved, and read later what came of it. Owners see their own tasks and nobody else's."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, get, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from atlas.errors import Forbidden
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.openapi import replies
from atlas.gateway.portal import caller_of, is_administrator, note
from atlas.gateway.portal_usage import to_seconds
from atlas.gateway.tasks_desk import (
    checked_request,
    journal_of,
    managed_task,
    own_task,
    run_of,
    submit,
    task_priority,
)
from atlas.gateway.tasks_events import event_stream
from atlas.gateway.tasks_receipt import signed_receipt
from atlas.gateway.tasks_wire import TaskBody, TaskDetail, TaskList, TaskReply, fields_of, to_task
from atlas.ralph import SOLVE, Correction, TaskResult, read_correction, read_request
from atlas.store import Outcome, Task, TaskFilter, TaskState
from atlas.types import Run

STATUSES = (400, 401, 403, 404, 409, 413, 415, 429, 503)
READING = (400, 401, 403, 404, 503)
IDEMPOTENCY_KEY = "idempotency-key"
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Since = Annotated[str | None, QueryParameter(description="ISO 8601; tasks that were submitted then or later")]
StateAsked = Annotated[TaskState | None, QueryParameter(name="state")]  # Litestar has `state` for itself
Whose = Annotated[str | None, QueryParameter(name="owner", description="Of administrators: a user's id, or all")]
SUBMITTED = ResponseSpec(TaskReply, generate_examples=False, description="The task waits")
REPEATED = "The task that was submitted under this idempotency key before"


@post(
    "/v1/tasks",
    status_code=202,
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="Have code written, and run until its tests pass",
    responses={**replies(TaskReply, STATUSES), 202: SUBMITTED},
)
async def submit_task(
    request: HTTPRequest, data: JSONBody[TaskBody], full: FromQuery[bool] = False
) -> Response[TaskReply] | Stream:
    exchange = exchange_of(request)
    priority = task_priority(exchange, data.priority)
    wanted = await checked_request(exchange, data)
    task, is_new = await submit(exchange, wanted, priority=priority, idempotency_key=exchange.headers.get(IDEMPOTENCY_KEY, ""))
    headers = {"location": f"/v1/tasks/{task.id}", "x-atlas-task-id": task.id}
    if data.stream:
        answer = event_stream(exchange, task, is_full=full)
        answer.headers.update(headers)
        return answer
    return Response(to_task(task), status_code=202 if is_new else 200, headers=headers)


@get(
    "/v1/tasks",
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="One's tasks, the newest first",
    responses=replies(TaskList, READING),
)
async def list_tasks(
    request: HTTPRequest,
    state_asked: StateAsked = None,
    outcome: FromQuery[Outcome | None] = None,
    since: Since = None,
    whose: Whose = None,
    limit: Limit = 100,
    cursor: FromQuery[str] = "",
) -> TaskList:
    exchange = exchange_of(request)
    wanted = TaskFilter(
        owner=owner_asked(exchange, whose),
        state=state_asked,
        outcome=outcome,
        kind=SOLVE,
        since=to_seconds("since", since) if since else None,
    )
    page = await journal_of(exchange).list(wanted, limit=limit, cursor=cursor)
    return TaskList(data=[to_task(task) for task in page.tasks], cursor=page.cursor)


@get(
    "/v1/tasks/{task_id:str}",
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="A task of one's own, with its result",
    responses=replies(TaskDetail, READING),
)
async def get_task(request: HTTPRequest, task_id: FromPath[str], full: FromQuery[bool] = False) -> TaskDetail:
    exchange = exchange_of(request)
    return await detail_of(exchange, await own_task(exchange, task_id), is_full=full)


@post(
    "/v1/tasks/{task_id:str}/cancel",
    status_code=200,
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="End a task of one's own; administrators: anybody's",
    responses=replies(TaskReply, STATUSES),
)
async def cancel_task(request: HTTPRequest, task_id: FromPath[str]) -> TaskReply:
    exchange = exchange_of(request)
    task = await managed_task(exchange, task_id)
    is_own = task.owner == caller_of(exchange).owner
    reason = {} if is_own else {"reason": "cancelled by an administrator"}
    task = await journal_of(exchange).cancel(task.id, **reason)
    if not is_own:
        await note(exchange, "task.cancelled", task.id)
    return to_task(task)


@post(
    "/v1/tasks/{task_id:str}/accept",
    status_code=200,
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="Say that a result is right, or how it should have been",
    responses=replies(TaskReply, STATUSES),
)
async def accept_task(request: HTTPRequest, task_id: FromPath[str], data: JSONBody[Correction]) -> TaskReply:
    exchange = exchange_of(request)
    task = await own_task(exchange, task_id)
    return to_task(await journal_of(exchange).accept(task.id, msgspec.json.encode(data), owner=task.owner))


@get(
    "/v1/tasks/{task_id:str}/receipt",
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="What a closed task has proved, signed; `atlas verify` checks it",
    responses=replies(TaskReply, (*READING, 409))
    | {200: ResponseSpec(str, generate_examples=False, description="A receipt", media_type="application/json")},
)
async def task_receipt(request: HTTPRequest, task_id: FromPath[str]) -> Response[bytes]:
    exchange = exchange_of(request)
    task = await own_task(exchange, task_id)
    receipt = await signed_receipt(exchange, task)
    headers = {"content-disposition": f'attachment; filename="{task.id}.json"'}
    return Response(receipt, media_type="application/json", headers=headers)


def owner_asked(exchange: Exchange, owner: str | None) -> str | None:
    """Whose tasks are listed: one's own; an administrator may name a user, or "all" (None).

    Raises:
        Forbidden: a member asks for others'.
    """
    who = caller_of(exchange)
    if owner is None or owner == who.owner:
        return who.owner
    if not is_administrator(who):
        raise Forbidden("only administrators see that others have tasks; leave `owner` out", param="owner")
    return None if owner == "all" else owner


async def detail_of(exchange: Exchange, task: Task, *, is_full: bool) -> TaskDetail:
    journal = journal_of(exchange)
    run: Run | None = await run_of(journal, task)
    accepted = await journal.accepted(task.id) if task.accepted_at is not None else b""
    return TaskDetail(
        **fields_of(task),
        request=read_request(await journal.request(task.id)),
        result=TaskResult.of(run) if run else None,
        run=run if is_full else None,
        accepted=read_correction(accepted),
    )
