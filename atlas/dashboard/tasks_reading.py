"""What the pages of tasks read from the journal: one's own texts, and of others' tasks nothing but that there are some."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from atlas.dashboard.view import View
from atlas.errors import AtlasError, NotFound, Unavailable
from atlas.ralph import SOLVE, Correction, TaskResult, read_correction, read_event, read_request, read_run, told
from atlas.store import Journal, Task, TaskEvent, TaskFilter, TaskPage
from atlas.types import Attempt, AttemptEnded, Event, Request, Run, Verdict

PAGE_ROWS = 50
TITLE_CHARS = 90
LOOK_S = 0.25  # how long is waited for further events of a task that runs; those there are come at once


class Brief(NamedTuple):
    """A task of one's own in a line; `verdict` is None until there is one."""

    title: str
    verdict: Verdict | None = None


class Row(NamedTuple):
    task: Task
    brief: Brief | None


class Listed(NamedTuple):
    """`older` is the cursor that leads on, empty at the end."""

    rows: tuple[Row, ...]
    older: str


class Progress(NamedTuple):
    """What is known of a task that is not closed."""

    lines: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    trouble: str = ""


class Whole(NamedTuple):
    """A task of one's own with its texts; `run` and `result` are None until it is closed with one."""

    task: Task
    request: Request
    run: Run | None
    result: TaskResult | None
    accepted: Correction | None
    progress: Progress


class _Asked(msgspec.Struct):
    task: str


class _Brought(msgspec.Struct):
    verdict: Verdict


def journal_of(view: View) -> Journal:
    """Raises Unavailable: this server keeps no tasks."""
    if view.deps.journal is None:
        raise Unavailable("this server keeps no tasks; its journal is not open")
    return view.deps.journal


async def list_tasks(view: View, wanted: TaskFilter, cursor: str) -> Listed:
    journal = journal_of(view)
    page: TaskPage = await journal.list(wanted, limit=PAGE_ROWS, cursor=cursor)
    briefs = [await brief_of(view, journal, task) for task in page.tasks]
    return Listed(tuple(map(Row, page.tasks, briefs)), page.cursor)


async def brief_of(view: View, journal: Journal, task: Task) -> Brief | None:
    """None for other people's tasks. Those of closed tasks never change, and are remembered."""
    if not is_own(view, task):
        return None
    known = view.deps.memory.briefs.get(task.id)
    if known is None:
        known = await _read_brief(journal, task)
        if task.is_closed:
            view.deps.memory.remember_brief(task.id, known)
    return known


async def _read_brief(journal: Journal, task: Task) -> Brief:
    try:
        asked = msgspec.json.decode(await journal.request(task.id), type=_Asked)
        result = await journal.result(task.id) if task.is_closed else b""
    except NotFound:  # it was pruned just now
        return Brief("")
    lines = asked.task.strip().splitlines() or [""]
    verdict = msgspec.json.decode(result, type=_Brought).verdict if result else None
    return Brief(lines[0][:TITLE_CHARS], verdict)


def is_own(view: View, task: Task) -> bool:
    return task.owner == view.who.owner


async def find_task(view: View, task_id: str) -> Task:
    """One's own; for an administrator, anybody's, without its texts.

    Raises:
        NotFound: there is none, or it is another's: the same words for both.
    """
    try:
        task = await journal_of(view).get(task_id, owner=view.only_owner)
    except NotFound:
        task = None
    if task is None or task.kind != SOLVE:
        raise NotFound(f"there is no task {task_id[:64]!r}, or it is not yours")
    return task


async def read_whole(view: View, task: Task) -> Whole:
    """A task of one's own."""
    journal = journal_of(view)
    run = read_run(await journal.result(task.id)) if task.is_closed else None
    accepted = await journal.accepted(task.id) if task.accepted_at is not None else b""
    return Whole(
        task=task,
        request=read_request(await journal.request(task.id)),
        run=run,
        result=TaskResult.of(run) if run else None,
        accepted=read_correction(accepted),
        progress=await read_progress(journal, task) if run is None else Progress(),
    )


async def read_progress(journal: Journal, task: Task) -> Progress:
    """What its events tell up to now."""
    found: list[Event] = []
    trouble = ""
    try:
        async with asyncio.timeout(LOOK_S):
            async for event in journal.events(task.id):
                if isinstance(event, TaskEvent):
                    found.append(read_event(event.body))  # noqa: PERF401 - what there is must survive the timeout
    except TimeoutError:
        pass
    except AtlasError as error:
        trouble = error.message
    return Progress(tuple(filter(None, map(told, found))), _attempts(found), trouble)


def _attempts(events: Sequence[Event]) -> tuple[Attempt, ...]:
    """The last of each number: a worker that begins anew begins to count anew."""
    latest = {event.attempt.number: event.attempt for event in events if isinstance(event, AttemptEnded)}
    return tuple(attempt for _, attempt in sorted(latest.items()))
