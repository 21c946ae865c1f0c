"""/api/users and /api/audit: people, for administrators. An admin changes members; owners change everybody."""

from __future__ import annotations

import asyncio
from typing import Annotated

from litestar import delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from atlas.errors import Forbidden
from atlas.gateway import portal_wire as wire
from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.portal import actor_of, caller_of, managed_user, portal_replies, store_of
from atlas.gateway.wire import Wire
from atlas.store import AuditEntry, Invitation


class AuditReply(Wire):
    """Newest first; `broken_seq` (asked for with `verify`) is the first entry that somebody has changed, null if none."""

    entries: list[AuditEntry]
    is_verified: bool = False
    broken_seq: int | None = None


@get("/users", opt={"access": "admin"}, tags=["users"], summary="Everybody", responses=portal_replies(wire.UserList))
async def list_users(request: HTTPRequest) -> wire.UserList:
    users = [wire.to_user(user) for user in store_of(exchange_of(request)).accounts.users()]
    return wire.UserList(users=users, total=len(users))


@patch(
    "/users/{user_id:str}",
    status_code=200,
    opt={"access": "admin"},
    tags=["users"],
    summary="Change a user's role, limits or address; disable or enable them",
    responses=portal_replies(wire.UserReply),
)
async def update_user(request: HTTPRequest, user_id: FromPath[str], data: JSONBody[wire.UserPatch]) -> wire.UserReply:
    exchange = exchange_of(request)
    user = managed_user(exchange, user_id)
    if data.role not in (None, "member") and caller_of(exchange).role != "owner":
        raise Forbidden("only an owner can make administrators and owners")
    changed = await asyncio.to_thread(
        store_of(exchange).accounts.update,
        user.id,
        actor=actor_of(exchange),
        role=data.role,
        limits=data.limits.to_limits() if data.limits else None,
        disabled=data.disabled,
        email=data.email,
    )
    return wire.to_user(changed)


@post(
    "/users/{user_id:str}/reset",
    status_code=200,
    opt={"access": "admin"},
    tags=["users"],
    summary="A link with which a user can choose a new password",
    responses=portal_replies(wire.ResetReply),
)
async def reset_user(request: HTTPRequest, user_id: FromPath[str]) -> wire.ResetReply:
    exchange = exchange_of(request)
    user = managed_user(exchange, user_id)
    token = await asyncio.to_thread(store_of(exchange).accounts.reset_token, user.id, actor=actor_of(exchange))
    return wire.ResetReply(token=token, path=f"/reset?token={token}")


@post(
    "/users/invite",
    status_code=200,
    opt={"access": "admin"},
    tags=["users"],
    summary="A link with which somebody can make an account",
    responses=portal_replies(wire.InvitationReply),
)
async def invite(request: HTTPRequest, data: JSONBody[wire.Invite]) -> wire.InvitationReply:
    exchange = exchange_of(request)
    if data.role != "member" and caller_of(exchange).role != "owner":
        raise Forbidden("only an owner can invite administrators")
    make = store_of(exchange).accounts.invite
    return to_invitation(await asyncio.to_thread(make, actor=actor_of(exchange), role=data.role, email=data.email))


@get(
    "/users/invitations",
    opt={"access": "admin"},
    tags=["users"],
    summary="Invitations that have not been followed",
    responses=portal_replies(wire.InvitationList),
)
async def list_invitations(request: HTTPRequest) -> wire.InvitationList:
    found = await asyncio.to_thread(store_of(exchange_of(request)).accounts.invitations)
    return wire.InvitationList(invitations=[to_invitation(invitation) for invitation in found], total=len(found))


@delete(
    "/users/invitations/{invitation_id:str}",
    status_code=200,
    opt={"access": "admin"},
    tags=["users"],
    summary="Take an invitation back",
    responses=portal_replies(wire.Done),
)
async def withdraw_invitation(request: HTTPRequest, invitation_id: FromPath[str]) -> wire.Done:
    exchange = exchange_of(request)
    withdraw = store_of(exchange).accounts.withdraw_invitation
    await asyncio.to_thread(withdraw, invitation_id, actor=actor_of(exchange))
    return wire.Done(message="the invitation is taken back")


@get("/audit", opt={"access": "admin"}, tags=["users"], summary="Who changed what", responses=portal_replies(AuditReply))
async def audit(
    request: HTTPRequest,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    before: Annotated[int | None, QueryParameter(ge=1, le=2**53)] = None,
    verify: FromQuery[bool] = False,
) -> AuditReply:
    log = store_of(exchange_of(request)).audit
    entries = await asyncio.to_thread(log.entries, limit, before=before)
    broken = await asyncio.to_thread(log.verify) if verify else None
    return AuditReply(entries=list(entries), is_verified=verify, broken_seq=broken)


def to_invitation(invitation: Invitation) -> wire.InvitationReply:
    return wire.InvitationReply(
        id=invitation.id,
        role=invitation.role,
        email=invitation.email,
        expires_at=wire.moment(invitation.expires_at),
        token=invitation.token or None,
        path=f"/register?token={invitation.token}" if invitation.token else None,
    )
