"""What the portal's routes share: who is asking, whose things they may touch, and how they are described."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from litestar.openapi import ResponseSpec

from atlas.errors import Conflict, Forbidden, NotFound
from atlas.gateway.exchange import Exchange
from atlas.gateway.openapi import replies
from atlas.gateway.wire import Wire
from atlas.store import Change, Store
from atlas.types import Principal, User

BODY_LIMIT_BYTES = 64 * 1024  # the longest honest body is a list of model ids
PUBLIC_STATUSES = (400, 401, 409, 413, 415, 429, 503)
STATUSES = (400, 401, 403, 404, 409, 413, 415, 429, 503)

Result = TypeVar("Result")


def portal_replies(reply: type[Wire], statuses: tuple[int, ...] = STATUSES) -> dict[int, ResponseSpec]:
    """The documented replies of a portal route."""
    return replies(reply, statuses)


def store_of(exchange: Exchange) -> Store:
    return exchange.deps.store


def caller_of(exchange: Exchange) -> Principal:
    """Who is asking; routes that are not public only."""
    assert exchange.principal is not None  # the Gate lets nobody else through
    return exchange.principal


def actor_of(exchange: Exchange) -> str:
    """Who did it, for the audit log."""
    who = caller_of(exchange)
    return who.key_id or who.owner


async def note(exchange: Exchange, action: str, what: str) -> None:
    """Write into the audit log that the caller did this to `what`."""
    change = Change(at=time.time(), actor=actor_of(exchange), action=action, object=what, source=exchange.source)
    await asyncio.to_thread(store_of(exchange).audit.note, change)


def account_of(exchange: Exchange) -> User:
    """The account of who is asking.

    Raises:
        Conflict: auth.mode is "off", so nobody has one.
    """
    if exchange.deps.auth.mode == "off":
        raise Conflict('auth.mode = "off": nobody signs in, so there are no accounts; start with auth.mode = "keys" to have them')
    return store_of(exchange).accounts.get(caller_of(exchange).owner)


async def with_password(exchange: Exchange, work: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Run what hashes a password in a thread, two at a time: more would only fill the pool that others need."""
    async with exchange.deps.hashing:
        return await asyncio.to_thread(work, *args, **options)


def whose(exchange: Exchange, user: str | None) -> str | None:
    """Whose things are asked for: one's own without `user`; an administrator may name a user, or "all" (None).

    Raises:
        Forbidden: a member asks for others'.
        NotFound: no such user.
    """
    who = caller_of(exchange)
    if user is None or user == who.owner:
        return who.owner
    if not is_administrator(who):
        raise Forbidden("only administrators see other users' things; leave `user` out")
    return None if user == "all" else store_of(exchange).accounts.get(user).id


def is_administrator(who: Principal) -> bool:
    return who.is_admin and "admin" in who.scopes


def manages(who: Principal, user: User) -> bool:
    """Whether `who` may change this user: an admin who could reset an owner's password would be an owner."""
    return is_administrator(who) and (who.role == "owner" or not user.is_admin)


def managed_user(exchange: Exchange, user_id: str) -> User:
    """Somebody the caller may change.

    Raises:
        NotFound: no such user.
        Forbidden: an admin or owner, and the caller is not an owner.
    """
    user = store_of(exchange).accounts.get(user_id)
    if not manages(caller_of(exchange), user):
        raise Forbidden("only an owner can change administrators and owners")
    return user


def unseen(what: str, thing_id: str) -> NotFound:
    """The same words for what does not exist and for what is somebody else's."""
    return NotFound(f"there is no {what} {thing_id[:64]!r}, or it is not yours")
