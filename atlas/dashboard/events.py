"""Live pages: one event stream a page, with a fragment of HTML for each part that has changed, once a second at most.

A stream ends when the server drains, when its session ends, and when the browser leaves. It does not keep a session awake.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing

import structlog
from litestar import get
from litestar.response import Stream
from markupsafe import Markup

from atlas.dashboard import activity, logs, models, overview, sandbox, tasks, usage
from atlas.dashboard.status import status_panel
from atlas.dashboard.view import HEADERS, HTTPRequest, View, view_of
from atlas.errors import AtlasError, Forbidden

log = structlog.get_logger("atlas.dashboard")

INTERVAL_S = 1.0  # between two looks at what has changed
IDLE_INTERVAL_S = 3.0  # when no request has: for the machine's strip, ages and downloads
PING_INTERVAL_S = 15.0
SESSION_CHECK_S = 3.0
STREAM_HEADERS = {**HEADERS, "x-accel-buffering": "no"}

Panels = Callable[[View], Awaitable[dict[str, Markup]]]


async def nothing(_view: View) -> dict[str, Markup]:
    """A page with nothing live but its status line."""
    return {}


PANELS: Mapping[str, Panels] = {
    "overview": overview.panels,
    "activity": activity.panels,
    "tasks": tasks.panels,
    "usage": usage.panels,
    "models": models.panels,
    "sandbox": sandbox.panels,
    "logs": logs.panels,
}
ADMIN_PAGES = frozenset({"logs"})


@get("/dash/events", opt={"access": "page"})
async def events(request: HTTPRequest) -> Stream:
    """Named events whose data is HTML: `status` and the page's parts. `page` names the page; the rest is that page's query."""
    view = view_of(request)
    name = view.query.get("page", "")
    if name in ADMIN_PAGES and not view.is_admin:
        raise Forbidden("the logs are for admins")
    view.deps.memory.check_streams(stream_owner(view))
    return Stream(stream(view, PANELS.get(name, nothing)), media_type="text/event-stream", headers=STREAM_HEADERS)


def stream_owner(view: View) -> str:
    return view.session.id if view.session else view.source


async def stream(view: View, panels: Panels) -> AsyncIterator[bytes]:
    """Whatever changed since the last look; a comment after a quiet while."""
    sent: dict[str, Markup] = {}
    spoken_s = checked_s = time.monotonic()
    with view.deps.memory.stream(stream_owner(view)):
        yield b"retry: 2000\n\n"
        async with aclosing(paced(view)) as turns:
            async for _ in turns:
                now_s = time.monotonic()
                if now_s - checked_s > SESSION_CHECK_S:
                    checked_s = now_s
                    if not await is_signed_in(view):
                        yield event("gone", Markup("the session has ended"))
                        return
                changed = {name: html for name, html in (await look(view, panels)).items() if sent.get(name) != html}
                sent |= changed
                if changed:
                    spoken_s = now_s
                    yield b"".join(event(name, html) for name, html in changed.items())
                elif now_s - spoken_s >= PING_INTERVAL_S:
                    spoken_s = now_s
                    yield b": ping\n\n"
        yield event("status", await status_panel(view))


async def look(view: View, panels: Panels) -> dict[str, Markup]:
    """The parts as they are now; while the ledger does not answer, only the status line."""
    status = {"status": await status_panel(view)}
    try:
        return status | await panels(view)
    except AtlasError as error:
        log.warning("dashboard.panels_failed", reason=error.message)
        return status


async def paced(view: View) -> AsyncGenerator[None]:
    """Turns when something may have changed, at least `INTERVAL_S` apart. Ends when the server drains."""
    changed = asyncio.Event()
    draining = view.deps.draining
    watching = asyncio.create_task(watch(view, changed))
    try:
        while not draining.is_set():
            changed.clear()
            yield
            await wait_for(draining, timeout_s=INTERVAL_S)
            await wait_for(draining, changed, timeout_s=IDLE_INTERVAL_S - INTERVAL_S)
    finally:
        watching.cancel()


async def wait_for(*events: asyncio.Event, timeout_s: float) -> None:
    """Until one of these is set, or the time is up."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def watch(view: View, changed: asyncio.Event) -> None:
    async for _ in view.deps.traffic.changes():
        changed.set()


async def is_signed_in(view: View) -> bool:
    """Whether the session still stands, with the same rights; asked without touching it."""
    if view.session is None:
        return True
    session, store = view.session, view.deps.store
    own = await asyncio.to_thread(store.sessions.of, session.user.id)
    return any(one.id == session.id for one in own) and store.accounts.get(session.user.id).role == view.who.role


def event(name: str, html: Markup) -> bytes:
    lines = "".join(f"data: {line}\n" for line in html.splitlines()) or "data:\n"
    return f"event: {name}\n{lines}\n".encode()
