"""Users: inviting, limiting, disabling, helping back in. For admins; who is admin or owner only the owner can change."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from litestar import Response, get, post
from litestar.params import FromPath

from atlas.dashboard.forms import Form, limit_values, read_form
from atlas.dashboard.messages import done
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, redirect, view_of
from atlas.errors import AtlasError, BadRequest, Forbidden
from atlas.types import User, UserRole


@get("/users", opt={"access": "page-admin"})
async def users(request: HTTPRequest) -> Response[str]:
    return await list_page(view_of(request))


async def list_page(view: View, *, error: AtlasError | None = None, form: Form | None = None) -> Response[str]:
    accounts, keys = view.deps.store.accounts, view.deps.store.keys
    found, invitations = await asyncio.to_thread(lambda: (accounts.users(), accounts.invitations()))
    num_keys = {user.id: sum(key.is_active and key.revoked_at is None for key in keys.list(user.id)) for user in found}
    return await show(
        view,
        "users.html",
        status=error.status if error else 200,
        users=found,
        invitations=invitations,
        num_keys=num_keys,
        roles=roles_for(view),
        done=done(view),
        error=error,
        form=form or Form(()),
    )


@post("/users/invite", opt={"access": "page-admin"})
async def invite(request: HTTPRequest) -> Response[str]:
    """The link is shown once: its token is kept as a hash."""
    view = view_of(request)
    form = await read_form(request, view)
    accounts = view.deps.store.accounts
    try:
        role = read_role(form, view)
        email = form.text("email", max_length=255)
        made = await asyncio.to_thread(accounts.invite, actor=view.actor, role=role, email=email)
    except AtlasError as error:
        return await list_page(view, error=error, form=form)
    link = f"{view.base_url}/register?token={made.token}"
    return await show(view, "link_made.html", link=link, kind="invitation", whom=email, expires_at=made.expires_at)


@post("/users/invitations/{invitation_id:str}/withdraw", opt={"access": "page-admin"})
async def withdraw(request: HTTPRequest, invitation_id: FromPath[str]) -> Response[str]:
    view = view_of(request)
    await read_form(request, view)
    await asyncio.to_thread(view.deps.store.accounts.withdraw_invitation, invitation_id, actor=view.actor)
    return redirect("/users?done=withdrawn")


@get("/users/{user_id:str}", opt={"access": "page-admin"})
async def one_user(request: HTTPRequest, user_id: FromPath[str]) -> Response[str]:
    return await user_page(view_of(request), user_id)


async def user_page(view: View, user_id: str, *, error: AtlasError | None = None, form: Form | None = None) -> Response[str]:
    user = await asyncio.to_thread(view.deps.store.accounts.get, user_id)
    return await show(
        view,
        "user.html",
        status=error.status if error else 200,
        user=user,
        keys=view.deps.store.keys.list(user.id),
        roles=roles_for(view, user),
        may_change=may_change(view, user),
        limits=limit_values(user.limits),
        defaults=view.deps.settings().limits,
        done=done(view),
        error=error,
        form=form or Form(()),
    )


@post("/users/{user_id:str}", opt={"access": "page-admin"})
async def update(request: HTTPRequest, user_id: FromPath[str]) -> Response[str]:
    """Role, limits and e-mail."""
    view = view_of(request)
    form = await read_form(request, view)
    user = await find(view, user_id)
    try:
        changes: dict[str, Any] = {"limits": form.limits(), "email": form.text("email", max_length=255)}
        if form.text("role") not in ("", user.role):
            changes["role"] = read_role(form, view, user)
        await asyncio.to_thread(view.deps.store.accounts.update, user.id, actor=view.actor, **changes)
    except AtlasError as error:
        return await user_page(view, user_id, error=error, form=form)
    return redirect(f"/users/{user.id}?done=saved")


@post("/users/{user_id:str}/reset", opt={"access": "page-admin"})
async def reset(request: HTTPRequest, user_id: FromPath[str]) -> Response[str]:
    """A link with which the user sets a new password: for who has forgotten theirs."""
    view = view_of(request)
    await read_form(request, view)
    user = await find(view, user_id)
    try:
        token = await asyncio.to_thread(view.deps.store.accounts.reset_token, user.id, actor=view.actor)
    except AtlasError as error:
        return await user_page(view, user_id, error=error)
    link = f"{view.base_url}/reset?token={token}"
    return await show(view, "link_made.html", link=link, kind="reset", whom=user.username, expires_at=None)


@post("/users/{user_id:str}/{action:str}", opt={"access": "page-admin"})
async def switch(request: HTTPRequest, user_id: FromPath[str], action: FromPath[str]) -> Response[str]:
    """Disable or enable."""
    view = view_of(request)
    await read_form(request, view)
    user = await find(view, user_id)
    if action not in ("disable", "enable"):
        raise BadRequest(f"a user can be disabled and enabled, not {action[:20]!r}")
    try:
        await asyncio.to_thread(view.deps.store.accounts.update, user.id, actor=view.actor, disabled=action == "disable")
    except AtlasError as error:
        return await user_page(view, user_id, error=error)
    return redirect(f"/users/{user.id}?done={action}d")


async def find(view: View, user_id: str) -> User:
    """One whom this viewer may change. Raises NotFound or Forbidden."""
    user = await asyncio.to_thread(view.deps.store.accounts.get, user_id)
    if not may_change(view, user):
        raise Forbidden("only the owner can change an admin or an owner")
    return user


def may_change(view: View, user: User) -> bool:
    """An admin who could reset an owner's password would be an owner."""
    return view.is_owner or not user.is_admin


def roles_for(view: View, user: User | None = None) -> tuple[UserRole, ...]:
    """Roles this viewer may give; nobody is invited as owner."""
    if not view.is_owner:
        return ("member",)
    return ("member", "admin", "owner") if user else ("member", "admin")


def read_role(form: Form, view: View, user: User | None = None) -> UserRole:
    if not view.is_owner and form.text("role") != "member":
        raise Forbidden("only the owner can make admins and owners")
    return cast("UserRole", form.choice("role", roles_for(view, user)))
