"""GET /v1/tasks/{id}/events: what happens to a task, as server-sent events that can be continued where they broke off."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Response, get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from atlas.errors import BadRequest, LimitsUnavailable
from atlas.gateway.answer import guarded
from atlas.gateway.errors import error_event
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.openapi import replies
from atlas.gateway.sse import EventStream
from atlas.gateway.tasks_desk import followed, journal_of, own_task, run_of
from atlas.gateway.tasks_wire import TaskClosedEvent, TaskReply, to_task
from atlas.ralph import TaskResult
from atlas.store import LAST_NUMBER, Task, TaskClosed, TaskEvent

EVENTS = ResponseSpec(
    Any, generate_examples=False, description="Server-sent events; the last one is `task.closed`", media_type="text/event-stream"
)
NOTHING_MORE = ResponseSpec(None, generate_examples=False, description="The last event was the last one there is")


class _Tagged(msgspec.Struct):
    event: str


@get(
    "/v1/tasks/{task_id:str}/events",
    opt={"access": "tasks"},
    tags=["tasks"],
    summary="What happens to a task of one's own, from the beginning or behind Last-Event-ID, until it is closed",
    responses=replies(TaskReply, (400, 401, 403, 404, 503)) | {200: EVENTS, 204: NOTHING_MORE},
)
async def task_events(
    request: HTTPRequest, task_id: FromPath[str], after: FromQuery[str] = "", full: FromQuery[bool] = False
) -> Stream | Response[None]:
    exchange = exchange_of(request)
    task = await own_task(exchange, task_id)
    last = last_number(exchange.headers.get("last-event-id", "") or after)
    if last >= LAST_NUMBER:
        return Response(None, status_code=204)  # which is how a browser's EventSource is told to stop
    if not task.is_closed and (trouble := journal_of(exchange).trouble):
        raise LimitsUnavailable(f"tasks cannot be followed now: {trouble}", retry_after_s=2)
    return event_stream(exchange, task, after=last, is_full=full)


def event_stream(exchange: Exchange, task: Task, *, after: int = 0, is_full: bool) -> EventStream:
    """What happens to a task behind that event, as an answer; `is_full`: with the whole run in the end."""
    events = numbered(exchange, task.id, after=after, is_full=is_full)
    return EventStream(exchange, guarded(exchange, events, render=error_event))


def last_number(text: str) -> int:
    """Raises BadRequest: it is no number of an event."""
    if text and not (text.isascii() and text.isdigit() and len(text) <= len(str(LAST_NUMBER))):
        raise BadRequest(f"last-event-id: {text[:40]!r} is no number of an event", param="last-event-id")
    return int(text or 0)


async def numbered(exchange: Exchange, task_id: str, *, after: int, is_full: bool) -> AsyncGenerator[bytes]:
    async for event in followed(exchange, task_id, after=after):
        body = event.body if isinstance(event, TaskEvent) else await _closed(exchange, event, is_full=is_full)
        yield _framed(event.number, body)


async def _closed(exchange: Exchange, event: TaskClosed, *, is_full: bool) -> bytes:
    run = await run_of(journal_of(exchange), event.task, event.result)
    closed = TaskClosedEvent(task=to_task(event.task), result=TaskResult.of(run) if run else None, run=run if is_full else None)
    return msgspec.json.encode(closed)


def _framed(number: int, body: bytes) -> bytes:
    """An event with its number, its name and its JSON, which has the name in it as well."""
    name = msgspec.json.decode(body, type=_Tagged).event
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, name.encode(), body)
