"""Playground: try the model from the browser, through the same API and the same limits as every program.

The page's script asks for a key when it first needs one. That key can chat and nothing else, lives fifteen minutes, is held in
the script's memory only, and ends with the session; a newer one replaces it. What is typed goes to /v1/chat/completions and is
kept nowhere.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from litestar import Response, get, post

from atlas.dashboard.forms import read_form
from atlas.dashboard.keys import models_of
from atlas.dashboard.people import PLAYGROUND
from atlas.dashboard.status import show
from atlas.dashboard.view import HEADERS, HTTPRequest, View, view_of

KEY_LIFE_S = 900.0  # as long as an access token: chosen


class PlaygroundKey(msgspec.Struct, frozen=True):
    """`key` is empty where requests need none."""

    key: str
    lifetime_s: float


@get("/playground", opt={"access": "page"})
async def playground(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    engine = view.deps.engine()
    what = engine.capabilities if engine else None
    return await show(view, "playground.html", what=what, models=models_of(view))


@post("/playground/key", opt={"access": "page"})
async def playground_key(request: HTTPRequest) -> Response[bytes]:
    view = view_of(request)
    await read_form(request, view)
    key = await mint(view) if view.session else ""
    body = msgspec.json.encode(PlaygroundKey(key, KEY_LIFE_S))
    return Response(body, media_type="application/json", headers=HEADERS, status_code=200)


async def mint(view: View) -> str:
    assert view.session is not None
    await end_playground(view)
    made = await asyncio.to_thread(
        view.deps.store.keys.mint,
        PLAYGROUND,
        owner=view.who.owner,
        scopes=("chat",),
        expires_at=time.time() + KEY_LIFE_S,
        actor=view.actor,
    )
    view.deps.memory.remember_key(view.session.id, made.info.id)
    return made.key


async def end_playground(view: View) -> None:
    """Take back the key of this session, if it has one."""
    if view.session and (key_id := view.deps.memory.playground_keys.pop(view.session.id, None)):
        await asyncio.to_thread(view.deps.store.keys.revoke, key_id, actor=view.actor)
