"""Doors for people who are not signed in: set-up, sign-in, invitation, password reset. And the way out.

A session begins with a new token each time, so that one planted in the browser beforehand is worth nothing.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Protocol

from litestar import Response, get, post
from litestar.datastructures import Cookie

from atlas.dashboard.forms import Form, read_form, read_public_form
from atlas.dashboard.messages import done
from atlas.dashboard.playground import end_playground
from atlas.dashboard.view import HTTPRequest, View, local_path, page, redirect, view_of
from atlas.errors import AtlasError, BadRequest
from atlas.types import User

USER_AGENT_MAX = 200
PUBLIC = {"access": "public", "form": True}


class Maker(Protocol):
    """Makes an account for whoever holds a one-time token."""

    def __call__(self, token: str, *, username: str, email: str, password: str, source: str) -> User: ...


@get("/signin", opt=PUBLIC)
async def signin_page(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    if view.session is not None:
        return redirect(local_path(view.query.get("next", "/")))
    return await signin_form(view)


async def signin_form(view: View, *, error: AtlasError | None = None, login: str = "", after: str = "") -> Response[str]:
    is_pending = await asyncio.to_thread(view.deps.store.accounts.setup_pending)
    after = after or local_path(view.query.get("next", "/"))
    return _page(view, "signin.html", error, is_pending=is_pending, login=login, after=after, done=done(view))


@post("/signin", opt=PUBLIC)
async def signin(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_public_form(request)
    login, after = form.text("login", max_length=255), local_path(form.text("next", max_length=2000))
    accounts = view.deps.store.accounts
    try:
        found = await asyncio.to_thread(accounts.sign_in, login, form.raw("password"), source=view.source)
        return await enter(request, view, found.user, after, generation=found.generation)
    except AtlasError as error:
        return await signin_form(view, error=error, login=login, after=after)


@post("/signout", opt={"access": "page"})
async def signout(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    await read_form(request, view)
    if view.session is not None:
        await end_playground(view)
        await asyncio.to_thread(view.deps.store.sessions.close, view.session.id, actor=view.actor)
    return redirect("/signin?done=signed-out", cookies=[session_cookie(view, "", max_age=0)])


@get("/setup", opt=PUBLIC)
async def setup_page(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    is_pending = await asyncio.to_thread(view.deps.store.accounts.setup_pending)
    if not is_pending:
        return redirect("/signin")
    return _new_user(view, "setup.html", token=view.query.get("token", ""))


@post("/setup", opt=PUBLIC)
async def setup(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_public_form(request)
    accounts = view.deps.store.accounts
    return await _make_user(request, view, form, accounts.complete_setup, "setup.html")


@get("/register", opt=PUBLIC)
async def register_page(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    return _new_user(view, "register.html", token=view.query.get("token", ""))


@post("/register", opt=PUBLIC)
async def register(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_public_form(request)
    return await _make_user(request, view, form, view.deps.store.accounts.register, "register.html")


@get("/reset", opt=PUBLIC)
async def reset_page(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    return _page(view, "reset.html", None, token=view.query.get("token", ""))


@post("/reset", opt=PUBLIC)
async def reset(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_public_form(request)
    token = form.text("token")
    try:
        password = read_new_password(form)
        await asyncio.to_thread(view.deps.store.accounts.reset_password, token, password, source=view.source)
    except AtlasError as error:
        return _page(view, "reset.html", error, token=token)
    return redirect("/signin?done=reset")


async def enter(request: HTTPRequest, view: View, user: User, after: str, *, generation: int | None = None) -> Response[str]:
    """Open a session and go on. Raises as `Sessions.open`."""
    agent = request.headers.get("user-agent", "")[:USER_AGENT_MAX]
    sessions = view.deps.store.sessions
    opened = await asyncio.to_thread(sessions.open, user, source=view.source, user_agent=agent, generation=generation)
    max_age = int(view.deps.settings().auth.session_s)
    return redirect(after, cookies=[session_cookie(view, opened.token, max_age=max_age)])


def session_cookie(view: View, token: str, *, max_age: int) -> Cookie:
    """The `__Host-` prefix makes browsers refuse one that another host or plain HTTP has set."""
    name = "__Host-atlas" if view.is_secure else "atlas"
    return Cookie(key=name, value=token, path="/", max_age=max_age, httponly=True, secure=view.is_secure, samesite="strict")


def read_new_password(form: Form) -> str:
    """Typed twice. Raises BadRequest."""
    password = form.raw("password")
    if password != form.raw("again"):
        raise BadRequest("the two passwords differ; type the same one twice", param="again")
    return password


async def _make_user(request: HTTPRequest, view: View, form: Form, make: Maker, template: str) -> Response[str]:
    token, username, email = form.text("token"), form.text("username"), form.text("email", max_length=255)
    try:
        password = read_new_password(form)
        user = await asyncio.to_thread(make, token, username=username, email=email, password=password, source=view.source)
    except AtlasError as error:
        return _new_user(view, template, token=token, username=username, email=email, error=error)
    return await enter(request, view, user, "/")


def _new_user(
    view: View, template: str, *, token: str, username: str = "", email: str = "", error: AtlasError | None = None
) -> Response[str]:
    return _page(view, template, error, token=token, username=username, email=email)


def _page(view: View, template: str, error: AtlasError | None, **context: Any) -> Response[str]:
    response = page(view, template, status=error.status if error else 200, error=error, **context)
    if error and error.retry_after_s:
        response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return response
