"""/api/auth: making an account, signing in and out, passwords.

Programs and V1's clients get an access token (15 minutes) and a refresh token (one use). The dashboard's pages use a session
cookie instead, and sign in by themselves; with that cookie these routes work as well.
"""

from __future__ import annotations

import asyncio

from litestar import Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atlas.gateway import portal_wire as wire
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.openapi import PUBLIC
from atlas.gateway.portal import PUBLIC_STATUSES, account_of, actor_of, portal_replies, store_of, unseen, with_password
from atlas.store import Tokens
from atlas.types import User


@post(
    "/auth/register",
    status_code=200,
    opt={"access": "public"},
    tags=["account"],
    summary="Make an account, with an invitation or the set-up token",
    security=PUBLIC,
    responses=portal_replies(wire.SignedIn, PUBLIC_STATUSES),
)
async def register(request: HTTPRequest, data: JSONBody[wire.Registration]) -> wire.SignedIn:
    exchange = exchange_of(request)
    accounts = store_of(exchange).accounts
    make = accounts.complete_setup if accounts.setup_pending() else accounts.register
    user = await with_password(
        exchange,
        make,
        data.token,
        username=data.username,
        email=data.email,
        password=data.password,
        source=exchange.source,
    )
    return await signed_in(exchange, user)


@post(
    "/auth/login",
    status_code=200,
    opt={"access": "public"},
    tags=["account"],
    summary="Sign in with name or e-mail address, and password",
    security=PUBLIC,
    responses=portal_replies(wire.SignedIn, PUBLIC_STATUSES),
)
async def login(request: HTTPRequest, data: JSONBody[wire.Credentials]) -> wire.SignedIn:
    exchange = exchange_of(request)
    check = store_of(exchange).accounts.sign_in
    found = await with_password(exchange, check, data.username, data.password, source=exchange.source)
    return await signed_in(exchange, *found)


@post(
    "/auth/refresh",
    status_code=200,
    opt={"access": "public"},
    tags=["account"],
    summary="The next pair of tokens; the old refresh token is used up",
    security=PUBLIC,
    responses=portal_replies(wire.TokenPair, PUBLIC_STATUSES),
)
async def refresh(request: HTTPRequest, data: JSONBody[wire.RefreshBody]) -> wire.TokenPair:
    exchange = exchange_of(request)
    tokens = await asyncio.to_thread(store_of(exchange).sessions.refresh, data.refresh_token, source=exchange.source)
    return wire.TokenPair(access_token=tokens.access, refresh_token=tokens.refresh, expires_in=int(tokens.expires_in_s))


@post(
    "/auth/logout",
    status_code=200,
    opt={"access": "account"},
    tags=["account"],
    summary="End this session, and the refresh token if one is sent",
    responses=portal_replies(wire.Done),
)
async def logout(request: HTTPRequest, data: JSONBody[wire.Logout]) -> Response[wire.Done]:
    exchange = exchange_of(request)
    sessions = store_of(exchange).sessions
    headers = {}
    if data.refresh_token:
        await asyncio.to_thread(sessions.revoke_refresh, data.refresh_token)
    if exchange.session is not None:
        await asyncio.to_thread(sessions.close, exchange.session.id, actor=actor_of(exchange))
        headers["set-cookie"] = exchange.client.drop_session()
    return Response(wire.Done(message="signed out; an access token ends by itself within minutes"), headers=headers)


@get(
    "/auth/me",
    opt={"access": "account"},
    tags=["account"],
    summary="Who is signed in",
    responses=portal_replies(wire.UserReply),
)
async def me(request: HTTPRequest) -> wire.UserReply:
    return wire.to_user(account_of(exchange_of(request)))


@get(
    "/auth/sessions",
    opt={"access": "account"},
    tags=["account"],
    summary="One's own browser sessions",
    responses=portal_replies(wire.SessionList),
)
async def list_sessions(request: HTTPRequest) -> wire.SessionList:
    exchange = exchange_of(request)
    current = exchange.session.id if exchange.session else None
    found = await asyncio.to_thread(store_of(exchange).sessions.of, account_of(exchange).id)
    sessions = [
        wire.SessionReply(
            id=session.id,
            created_at=wire.moment(session.created_at),
            expires_at=wire.moment(session.expires_at),
            source=session.source,
            user_agent=session.user_agent,
            is_current=session.id == current,
        )
        for session in found
    ]
    return wire.SessionList(sessions=sessions, total=len(sessions))


@delete(
    "/auth/sessions/{session_id:str}",
    status_code=200,
    opt={"access": "account"},
    tags=["account"],
    summary="End one of one's own browser sessions",
    responses=portal_replies(wire.Done),
)
async def close_session(request: HTTPRequest, session_id: FromPath[str]) -> wire.Done:
    exchange = exchange_of(request)
    sessions = store_of(exchange).sessions
    own = await asyncio.to_thread(sessions.of, account_of(exchange).id)
    if session_id not in {session.id for session in own}:
        raise unseen("session", session_id)
    await asyncio.to_thread(sessions.close, session_id, actor=actor_of(exchange))
    return wire.Done(message="the session has ended")


@post(
    "/auth/password",
    status_code=200,
    opt={"access": "account"},
    tags=["account"],
    summary="Change one's password; every session and token ends",
    responses=portal_replies(wire.Done),
)
async def change_password(request: HTTPRequest, data: JSONBody[wire.PasswordChange]) -> wire.Done:
    exchange = exchange_of(request)
    change = store_of(exchange).accounts.change_password
    user = account_of(exchange)
    await with_password(exchange, change, user.id, data.old_password, data.new_password, source=exchange.source)
    return wire.Done(message="the password is changed; sign in again")


@post(
    "/auth/reset",
    status_code=200,
    opt={"access": "public"},
    tags=["account"],
    summary="Choose a new password with a reset token; every session and token ends",
    security=PUBLIC,
    responses=portal_replies(wire.Done, PUBLIC_STATUSES),
)
async def reset_password(request: HTTPRequest, data: JSONBody[wire.PasswordReset]) -> wire.Done:
    exchange = exchange_of(request)
    reset = store_of(exchange).accounts.reset_password
    await with_password(exchange, reset, data.token, data.password, source=exchange.source)
    return wire.Done(message="the password is changed; sign in with it")


async def signed_in(exchange: Exchange, user: User, generation: int | None = None) -> wire.SignedIn:
    issue = store_of(exchange).sessions.issue
    tokens: Tokens = await asyncio.to_thread(issue, user, source=exchange.source, generation=generation)
    return wire.SignedIn(
        access_token=tokens.access,
        refresh_token=tokens.refresh,
        expires_in=int(tokens.expires_in_s),
        user=wire.to_user(user),
    )
