"""Tasks: what waits, runs and was solved; a page for each with its attempts side by side. Texts are shown to their owner only."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath
from markupsafe import Markup

from atlas.dashboard.forms import Form, read_form
from atlas.dashboard.people import Names, names_of
from atlas.dashboard.solved import shown_attempts, time_line
from atlas.dashboard.status import show
from atlas.dashboard.tasks_reading import Whole, find_task, is_own, journal_of, list_tasks, read_whole
from atlas.dashboard.view import HEADERS, HTTPRequest, View, fragment, redirect, view_of
from atlas.errors import AtlasError, Conflict
from atlas.ralph import SOLVE, Correction, issue_receipt, signing_key
from atlas.store import Change, Outcome, Task, TaskFilter, TaskState, TaskStats

STATES: tuple[TaskState, ...] = get_args(TaskState)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
CODE_CHARS = 48 * 1024  # of a correction; a form has 64 KiB


class Filters(NamedTuple):
    """What the list is narrowed to; empty is everything."""

    user: str = ""
    state: str = ""
    outcome: str = ""


@get("/tasks", opt={"access": "page"})
async def tasks(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    names = await asyncio.to_thread(names_of, view.deps.store, view.only_owner)
    return await show(
        view,
        "tasks.html",
        panels=await list_panels(view),
        filters=filters_of(view),
        users=[("", "all"), *names.users.items()],
        states=[("", "all"), *((state, state) for state in STATES)],
        outcomes=[("", "all"), *((outcome, outcome) for outcome in OUTCOMES)],
    )


async def panels(view: View) -> dict[str, Markup]:
    """Of the list, or of the task that the page is about."""
    if not (task_id := view.query.get("item", "")):
        return await list_panels(view)
    return await task_panels(view, await find_task(view, task_id))


async def list_panels(view: View) -> dict[str, Markup]:
    if view.deps.journal is None:
        return {"queue": Markup(""), "tasks": fragment(view, "parts/no_tasks.html")}
    filters, cursor = filters_of(view), view.query.get("before", "")
    wanted = TaskFilter(
        owner=view.only_owner or filters.user or None,
        state=next((state for state in STATES if state == filters.state), None),
        outcome=next((outcome for outcome in OUTCOMES if outcome == filters.outcome), None),
        kind=SOLVE,
    )
    listed = await list_tasks(view, wanted, cursor)
    stats: TaskStats = await view.deps.journal.stats(owner=view.only_owner, kind=SOLVE)
    names = await asyncio.to_thread(names_of, view.deps.store, view.only_owner)
    return {
        "queue": fragment(view, "parts/task_queue.html", stats=stats),
        "tasks": fragment(
            view,
            "parts/task_rows.html",
            listed=listed,
            names=names,
            is_filtered=any(filters) or bool(cursor),
            older=page_link(filters, listed.older) if listed.older else "",
            newest=page_link(filters, "") if cursor else "",
            curl=curl(view),
        ),
    }


@get("/tasks/{task_id:str}", opt={"access": "page"})
async def one_task(request: HTTPRequest, task_id: FromPath[str]) -> Response[str]:
    view = view_of(request)
    return await task_page(view, await find_task(view, task_id), done=DONE.get(view.query.get("done", ""), ""))


@post("/tasks/{task_id:str}/cancel", opt={"access": "page"})
async def cancel(request: HTTPRequest, task_id: FromPath[str]) -> Response[str]:
    """Its owner may, and administrators."""
    view = view_of(request)
    await read_form(request, view)
    task = await find_task(view, task_id)
    reason = {} if is_own(view, task) else {"reason": "cancelled by an administrator"}
    await journal_of(view).cancel(task.id, **reason)
    if not is_own(view, task):
        change = Change(at=time.time(), actor=view.actor, action="task.cancelled", object=task.id, source=view.source)
        await asyncio.to_thread(view.deps.store.audit.note, change)
    return redirect(f"/tasks/{task.id}?done=cancelled")


@post("/tasks/{task_id:str}/accept", opt={"access": "page"})
async def accept(request: HTTPRequest, task_id: FromPath[str]) -> Response[str]:
    """Its owner says that the result is right, or how it should have been."""
    view = view_of(request)
    form = await read_form(request, view)
    task = await own_task(view, task_id)
    try:
        correction = correction_of(form, await read_whole(view, task))
        await journal_of(view).accept(task.id, msgspec.json.encode(correction), owner=task.owner)
    except AtlasError as error:
        return await task_page(view, task, error=error, form=form)
    return redirect(f"/tasks/{task.id}?done={'corrected' if correction.code is not None else 'accepted'}")


@get("/tasks/{task_id:str}/receipt", opt={"access": "page"})
async def receipt(request: HTTPRequest, task_id: FromPath[str]) -> Response[bytes]:
    view = view_of(request)
    task = await own_task(view, task_id)
    whole = await read_whole(view, task)
    if whole.run is None:
        raise Conflict(f"task {task.id} has no result; a receipt is for a task that was solved or tried to the end")
    key = await asyncio.to_thread(signing_key, view.deps.store.secret)
    headers = {**HEADERS, "content-disposition": f'attachment; filename="{task.id}.json"'}
    body = issue_receipt(whole.run, key, issued_at=task.closed_at or time.time())
    return Response(body, media_type="application/json", headers=headers)


DONE = {
    "cancelled": "The task is being ended.",
    "accepted": "Noted: the result is right.",
    "corrected": "Noted: your code stands beside the result.",
}


async def task_page(
    view: View, task: Task, *, done: str = "", error: AtlasError | None = None, form: Form | None = None
) -> Response[str]:
    whole = await read_whole(view, task) if is_own(view, task) else None
    return await show(
        view,
        "task.html",
        status=error.status if error else 200,
        task=task,
        whole=whole,
        panels=await task_panels(view, task, whole),
        done=done,
        error=error,
        form=form or Form(()),
    )


async def task_panels(view: View, task: Task, whole: Whole | None = None) -> dict[str, Markup]:
    """Of one's own task everything, of another's what an administrator may see."""
    if whole is None and is_own(view, task):
        whole = await read_whole(view, task)
    names: Names = await asyncio.to_thread(names_of, view.deps.store, view.only_owner)
    run = whole.run if whole else None
    attempts = run.attempts if run else whole.progress.attempts if whole else ()
    context = {"task": task, "whole": whole, "names": names}
    return {
        "facts": fragment(view, "parts/task_facts.html", **context),
        "progress": fragment(view, "parts/task_progress.html", **context) if whole else Markup(""),
        "timeline": fragment(view, "parts/task_timeline.html", run=run, bars=time_line(run)) if run else Markup(""),
        "attempts": fragment(
            view, "parts/task_attempts.html", attempts=shown_attempts(attempts, run.winner if run else None), **context
        )
        if whole
        else Markup(""),
    }


async def own_task(view: View, task_id: str) -> Task:
    """Raises NotFound: it is not one's own, administrators' included."""
    task = await journal_of(view).get(task_id, owner=view.who.owner)
    return await find_task(view, task.id)


def correction_of(form: Form, whole: Whole) -> Correction:
    """Without code, or with the result's own, it says that the result is right."""
    code = form.text("code", max_length=CODE_CHARS).replace("\r\n", "\n")
    is_same = whole.run is not None and code.strip() == whole.run.code.strip()
    wanted = None if form.text("how") == "right" or not code or is_same else code + "\n"
    return Correction(code=wanted, comment=form.text("comment", max_length=2000))


def filters_of(view: View) -> Filters:
    return Filters(*(view.query.get(name, "") for name in Filters._fields))


def page_link(filters: Filters, before: str) -> str:
    kept = {name: value for name, value in {**filters._asdict(), "before": before}.items() if value}
    return "/tasks" + (f"?{urlencode(kept)}" if kept else "")


def curl(view: View) -> str:
    """A request that somebody can paste into a terminal."""
    body = '{"task": "Write add(a, b).", "tests": "assert add(1, 2) == 3"}'
    return (
        f"curl {view.base_url}/v1/tasks -H 'Authorization: Bearer YOUR_KEY' \\\n  -H 'Content-Type: application/json' -d '{body}'"
    )
