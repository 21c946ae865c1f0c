"""What every way of having a task solved shares: who may, how urgently, whose it is, and how it is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial

import msgspec

from atlas.errors import Forbidden, NotFound, Unavailable, Unsupported
from atlas.gateway.exchange import Exchange
from atlas.gateway.models import ATLAS, check_allowed, choose_engine
from atlas.gateway.portal import caller_of, is_administrator, unseen
from atlas.gateway.submissions import fixed_route, quota_of, solve_submission
from atlas.gateway.tasks_wire import PRIORITY_NAMES, PriorityName
from atlas.ralph import SOLVE, TaskRequest, read_run
from atlas.store import Journal, Submitted, Task, TaskClosed, TaskEvent
from atlas.types import Principal, Request, Run

# Priority by route, where nobody asks for another. A chat's is that of its route (meter.py).
PRIORITIES = {"/v1/tasks": 1, "/v1/tasks/submit": 1, "/mcp": 1}
LONG_TESTS_CHARS = 500  # are parsed beside the event loop: about 4 ms for 1,000 characters of asserts
SCOPES: dict[int, str] = {0: "interactive"}  # what has to be held to ask for a priority


def journal_of(exchange: Exchange) -> Journal:
    """Raises Unavailable: this server keeps no tasks."""
    if exchange.deps.journal is None:
        raise Unavailable("this server keeps no tasks; its journal is not open")
    return exchange.deps.journal


async def checked_request(exchange: Exchange, asked: TaskRequest) -> Request:
    """What is asked for, checked; long tests are parsed beside the event loop.

    Raises:
        BadRequest: it makes no sense.
        ModelNotFound, ModelNotAllowed, ModelNotLoaded: the model is not the one that answers here, or not for this key.
    """
    check_model(exchange, asked.model)
    if asked.project is not None:
        check_project(exchange)
    settings = exchange.deps.settings
    checking = partial(asked.request, settings.sandbox, fixed_route(settings.tasks))
    request = checking() if len(asked.tests) < LONG_TESTS_CHARS else await asyncio.to_thread(checking)
    return msgspec.structs.replace(request, model="") if request.model == ATLAS else request


def check_project(exchange: Exchange) -> None:
    """A project is a directory of this machine, and its code runs with its owner's environment.

    Raises:
        Forbidden: somebody else asks, or from elsewhere.
    """
    if caller_of(exchange).role != "owner" or not exchange.client.is_local:
        raise Forbidden("project: only the server's owner may name a directory of its machine, and only from there")


def check_model(exchange: Exchange, model: str) -> None:
    """Tasks are solved with the loaded model; a key that is held to others may not have it used."""
    who, loaded = caller_of(exchange), exchange.deps.models.loaded_id()
    if model not in ("", ATLAS):
        choose_engine(exchange, model)
        if exchange.adapter is not None:
            raise Unsupported(f"model {model!r}: tasks are solved with the model alone; leave the adapter out", param="model")
        if model != loaded:
            raise Unsupported(
                f"model {model!r}: tasks are solved with {loaded!r}, which was loaded first; name that", param="model"
            )
    elif loaded is not None and who.models is not None and ATLAS not in who.models:
        check_allowed(exchange, loaded)


def task_priority(exchange: Exchange, name: PriorityName | None) -> int:
    """The priority that is asked for, or the route's own.

    Raises:
        Forbidden: it takes a scope that the caller has not.
    """
    if name is None:
        return PRIORITIES[exchange.route]
    priority = PRIORITY_NAMES.index(name)
    check_priority(caller_of(exchange), priority)
    return priority


def check_priority(who: Principal, priority: int) -> None:
    scope = SCOPES.get(priority)
    if scope is not None and scope not in who.scopes:
        raise Forbidden(f"priority p{priority} needs the scope {scope!r}; p1 does not", param="priority")


async def submit(exchange: Exchange, request: Request, *, priority: int, idempotency_key: str = "") -> Submitted:
    """Have a request solved for the caller. Raises as `Journal.submit`."""
    settings = exchange.deps.settings.tasks
    submission = solve_submission(request, caller_of(exchange), settings, priority=priority, idempotency_key=idempotency_key)
    return await journal_of(exchange).submit(submission, quota_of(settings))


async def own_task(exchange: Exchange, task_id: str) -> Task:
    """A task of the caller's: its texts are nobody else's business, administrators included.

    Raises:
        NotFound: there is none, or it is somebody else's; the same words for both.
    """
    return await _task(exchange, task_id, owner=caller_of(exchange).owner)


async def managed_task(exchange: Exchange, task_id: str) -> Task:
    """A task that the caller may end: their own; for an administrator, anybody's. Raises NotFound."""
    who = caller_of(exchange)
    return await _task(exchange, task_id, owner=None if is_administrator(who) else who.owner)


async def _task(exchange: Exchange, task_id: str, *, owner: str | None) -> Task:
    try:
        task = await journal_of(exchange).get(task_id, owner=owner)
    except NotFound:
        raise unseen("task", task_id) from None
    if task.kind != SOLVE:
        raise unseen("task", task_id)
    return task


async def run_of(journal: Journal, task: Task, result: bytes | None = None) -> Run | None:
    """What was done, once it is closed; None where it was ended before there was anything. `result`: if it is at hand."""
    if not task.is_closed:
        return None
    return read_run(await journal.result(task.id) if result is None else result)


async def followed(
    exchange: Exchange, task_id: str, *, after: int = 0, is_wanted: Callable[[], bool] = lambda: True
) -> AsyncGenerator[TaskEvent | TaskClosed]:
    """What happens to a task, until it is closed, the client has gone, or the server stops.

    Raises:
        LimitsUnavailable: Redis has gone; to be continued from the last number.
    """
    events = aiter(journal_of(exchange).events(task_id, after=after))
    draining = asyncio.ensure_future(exchange.deps.draining.wait())
    try:
        while is_wanted() and not draining.done() and not exchange.is_over:
            exchange.waiting = step = asyncio.ensure_future(_next(events))
            await asyncio.wait([step, draining], return_when=asyncio.FIRST_COMPLETED)
            if not step.done() or step.cancelled() or (event := step.result()) is None:
                return
            yield event
    finally:
        draining.cancel()
        if exchange.waiting is not None:
            exchange.waiting.cancel()


async def _next(events: AsyncIterator[TaskEvent | TaskClosed]) -> TaskEvent | TaskClosed | None:
    return await anext(events, None)
