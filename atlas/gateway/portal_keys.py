"""/api/keys: one's own keys; administrators see and take back those of the users they manage. /api/validate-key for services."""

from __future__ import annotations

import asyncio
import time

from litestar import Response, delete, get, patch, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from atlas.errors import Forbidden, NotFound, Unauthorized
from atlas.gateway import portal_wire as wire
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.portal import (
    STATUSES,
    account_of,
    actor_of,
    caller_of,
    manages,
    portal_replies,
    store_of,
    unseen,
    whose,
)
from atlas.gateway.wire import ErrorReply
from atlas.store import KeyInfo


@get(
    "/keys",
    opt={"access": "account"},
    tags=["keys"],
    summary="One's own keys; administrators: another user's, or all",
    responses=portal_replies(wire.KeyList),
)
async def list_keys(request: HTTPRequest, user: FromQuery[str | None] = None) -> wire.KeyList:
    exchange = exchange_of(request)
    found = store_of(exchange).keys.list(whose(exchange, user))
    return wire.KeyList(keys=[wire.to_key(info) for info in found], total=len(found))


@post(
    "/keys",
    status_code=200,
    opt={"access": "account"},
    tags=["keys"],
    summary="Make a key; its text is in this reply and nowhere else",
    responses=portal_replies(wire.MintedReply),
)
async def create_key(request: HTTPRequest, data: JSONBody[wire.KeyBody]) -> wire.MintedReply:
    exchange = exchange_of(request)
    options = {} if data.scopes is None else {"scopes": data.scopes}
    made = await asyncio.to_thread(
        store_of(exchange).keys.mint,
        data.name,
        owner=account_of(exchange).id,
        models=data.models,
        allow_remote=data.allow_remote,
        limits=data.to_limits(),
        expires_at=time.time() + data.expires_days * wire.DAY_S if data.expires_days else None,
        actor=actor_of(exchange),
        **options,
    )
    return wire.to_minted(made.key, made.info)


@patch(
    "/keys/{key_id:str}",
    status_code=200,
    opt={"access": "account"},
    tags=["keys"],
    summary="Change a key's name, scopes, models or limits, at once",
    responses=portal_replies(wire.KeyReply),
)
async def update_key(request: HTTPRequest, key_id: FromPath[str], data: JSONBody[wire.KeyPatch]) -> wire.KeyReply:
    exchange = exchange_of(request)
    info = find_key(exchange, key_id)
    update = store_of(exchange).keys.update
    return wire.to_key(await asyncio.to_thread(update, info.id, actor=actor_of(exchange), **data.changes()))


@patch(
    "/keys/{key_id:str}/toggle",
    status_code=200,
    opt={"access": "account"},
    tags=["keys"],
    summary="Switch a key off, or on again, at once",
    responses=portal_replies(wire.KeyReply),
)
async def toggle_key(request: HTTPRequest, key_id: FromPath[str]) -> wire.KeyReply:
    exchange = exchange_of(request)
    info = find_key(exchange, key_id)
    switch = store_of(exchange).keys.set_active
    return wire.to_key(await asyncio.to_thread(switch, info.id, not info.is_active, actor=actor_of(exchange)))


@post(
    "/keys/{key_id:str}/rotate",
    status_code=200,
    opt={"access": "account"},
    tags=["keys"],
    summary="Replace a key by a new one; the old one stays good for `grace_s`",
    responses=portal_replies(wire.MintedReply),
)
async def rotate_key(request: HTTPRequest, key_id: FromPath[str], data: JSONBody[wire.Rotation]) -> wire.MintedReply:
    exchange = exchange_of(request)
    info = find_key(exchange, key_id)
    if info.owner != caller_of(exchange).owner:
        raise Forbidden("only its owner rotates a key: you would be shown theirs; DELETE ends it")
    made = await asyncio.to_thread(store_of(exchange).keys.rotate, info.id, grace_s=data.grace_s, actor=actor_of(exchange))
    return wire.to_minted(made.key, made.info)


@delete(
    "/keys/{key_id:str}",
    status_code=200,
    opt={"access": "account"},
    tags=["keys"],
    summary="End a key, at once and for good",
    responses=portal_replies(wire.Done),
)
async def delete_key(request: HTTPRequest, key_id: FromPath[str]) -> wire.Done:
    exchange = exchange_of(request)
    info = find_key(exchange, key_id)
    await asyncio.to_thread(store_of(exchange).keys.revoke, info.id, actor=actor_of(exchange))
    return wire.Done(message=f"key {info.id} has ended")


VERDICTS = portal_replies(wire.KeyVerdict, tuple(status for status in STATUSES if status != 404)) | {
    401: ResponseSpec(
        wire.KeyVerdict | ErrorReply,  # type: ignore[arg-type]  # a union is a type to read, if not to mypy
        generate_examples=False,
        description="The key is not valid; or nobody known asks",
    )
}


@post(
    "/validate-key",
    status_code=200,
    opt={"access": "known"},
    tags=["keys"],
    summary="Is this a valid key, and whose? 30 times a minute",
    responses=VERDICTS,
)
async def validate_key(request: HTTPRequest, data: JSONBody[wire.KeyCheck]) -> Response[wire.KeyVerdict]:
    exchange = exchange_of(request)
    exchange.deps.key_checks.count(caller_of(exchange).owner)
    try:
        found = store_of(exchange).keys.verify(data.api_key)
    except Unauthorized as error:
        return Response(wire.KeyVerdict(valid=False, error=error.message), status_code=401)
    limit = found.key_limits.requests_per_minute
    return Response(wire.KeyVerdict(valid=True, user=found.username, key_name=found.name, rate_limit=limit))


def find_key(exchange: Exchange, key_id: str) -> KeyInfo:
    """A key the caller may touch: their own, or one of a user they manage.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    who, store = caller_of(exchange), store_of(exchange)
    try:
        info = store.keys.get(key_id)
    except NotFound:
        raise unseen("key", key_id) from None
    if info.owner != who.owner and not manages(who, store.accounts.get(info.owner)):
        raise unseen("key", key_id)
    return info
