"""Profile: one's own password, and where one is signed in."""

from __future__ import annotations

import asyncio

from litestar import Response, get, post
from litestar.params import FromPath

from atlas.dashboard.forms import limit_values, read_form
from atlas.dashboard.messages import done
from atlas.dashboard.signin import enter, read_new_password
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, redirect, view_of
from atlas.errors import AtlasError, NotFound


@get("/profile", opt={"access": "page"})
async def profile(request: HTTPRequest) -> Response[str]:
    return await profile_page(view_of(request))


async def profile_page(view: View, *, error: AtlasError | None = None) -> Response[str]:
    sessions = await asyncio.to_thread(view.deps.store.sessions.of, view.who.owner) if view.session else []
    return await show(
        view,
        "profile.html",
        status=error.status if error else 200,
        sessions=sessions,
        browser_name=browser_name,
        limits=limit_values(view.who.user_limits),
        done=done(view),
        error=error,
    )


@post("/profile/password", opt={"access": "page"})
async def password(request: HTTPRequest) -> Response[str]:
    """Every session ends with the old password; this browser gets a new one."""
    view = view_of(request)
    form = await read_form(request, view)
    if view.session is None:
        raise NotFound('there are no passwords while auth.mode is "off"')
    accounts, user = view.deps.store.accounts, view.session.user
    try:
        new = read_new_password(form)
        await asyncio.to_thread(accounts.change_password, user.id, form.raw("old"), new, source=view.source)
    except AtlasError as error:
        return await profile_page(view, error=error)
    return await enter(request, view, user, "/profile?done=password")


@post("/profile/sessions/others", opt={"access": "page"})
async def close_others(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    await read_form(request, view)
    for session in await asyncio.to_thread(view.deps.store.sessions.of, view.who.owner):
        if view.session and session.id != view.session.id:
            await asyncio.to_thread(view.deps.store.sessions.close, session.id, actor=view.actor)
    return redirect("/profile?done=sessions")


@post("/profile/sessions/{session_id:str}", opt={"access": "page"})
async def close_session(request: HTTPRequest, session_id: FromPath[str]) -> Response[str]:
    view = view_of(request)
    await read_form(request, view)
    own = await asyncio.to_thread(view.deps.store.sessions.of, view.who.owner)
    if session_id not in {session.id for session in own}:
        raise NotFound("no such session of yours; it may have ended")
    await asyncio.to_thread(view.deps.store.sessions.close, session_id, actor=view.actor)
    return redirect("/profile?done=session")


# In this order: each of these also claims to be those below it.
BROWSERS = (("Edg/", "Edge"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS", "macOS"),
    ("Linux", "Linux"),
)


def browser_name(user_agent: str) -> str:
    """Firefox on Linux; what is not known is shown as it is."""
    browser, system = (next((name for mark, name in known if mark in user_agent), "") for known in (BROWSERS, SYSTEMS))
    return f"{browser} on {system}" if browser and system else user_agent or "unknown"
