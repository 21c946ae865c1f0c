"""Keys: made here, shown once, and taken back at once."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from litestar import Response, get, post
from litestar.params import FromPath

from atlas.dashboard.forms import DAY_S, LIFETIMES_S, Form, limit_values, read_form
from atlas.dashboard.messages import done
from atlas.dashboard.people import PLAYGROUND, names_of
from atlas.dashboard.snippets import snippets
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, redirect, view_of
from atlas.errors import AtlasError, BadRequest, Forbidden, NotFound
from atlas.store import KeyInfo, MintedKey
from atlas.types import Limits

# What each scope lets a program do; the order is the form's.
SCOPES = {
    "chat": "chat, completions, messages, responses",
    "embeddings": "embeddings",
    "read": "models, own usage",
    "tasks": "submit tasks, run code",
    "interactive": "tasks in priority p0, before those of others",
    "projects": "manage projects",
    "admin": "users, keys and models of everyone",
    "worker": "work on tasks of everyone",
}
USUAL_SCOPES = ("chat", "embeddings", "read")
ADMIN_SCOPES = ("admin", "worker")
GRACES_S = {"0": 0.0, "5min": 300.0, "1h": 3600.0, "1d": DAY_S}


class Wanted(NamedTuple):
    """What the form of a key says."""

    name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    allow_remote: bool
    limits: Limits


@get("/keys", opt={"access": "page"})
async def keys(request: HTTPRequest) -> Response[str]:
    return await list_page(view_of(request))


async def list_page(view: View, *, error: AtlasError | None = None, form: Form | None = None) -> Response[str]:
    store = view.deps.store
    found, names = await asyncio.to_thread(lambda: (store.keys.list(view.only_owner), names_of(store, view.only_owner)))
    now_s = time.time()
    kept = [key for key in found if key.name != PLAYGROUND or key.is_valid(now_s)]
    order = sorted(kept, key=lambda key: (not key.is_valid(now_s) and not is_paused(key, now_s), -key.created_at))
    return await show(
        view,
        "keys.html",
        status=error.status if error else 200,
        keys=order,
        names=names,
        scopes=scopes_for(view),
        usual=USUAL_SCOPES,
        lifetimes=LIFETIMES_S,
        models=models_of(view),
        state_of=state_of,
        done=done(view),
        error=error,
        form=form or Form(()),
    )


@post("/keys", opt={"access": "page"})
async def create(request: HTTPRequest) -> Response[str]:
    """The key is in this one answer and nowhere else: not in an address, a cookie or a log."""
    view = view_of(request)
    form = await read_form(request, view)
    try:
        wanted, expires_at = read_key(form, view), form.lifetime("expires")
        made = await asyncio.to_thread(
            view.deps.store.keys.mint,
            wanted.name,
            owner=view.who.owner if view.session else None,
            scopes=wanted.scopes,
            models=wanted.models,
            allow_remote=wanted.allow_remote,
            limits=wanted.limits,
            expires_at=expires_at,
            actor=view.actor,
        )
    except AtlasError as error:
        return await list_page(view, error=error, form=form)
    return await show_once(view, made, is_new=True)


@get("/keys/{key_id:str}", opt={"access": "page"})
async def one_key(request: HTTPRequest, key_id: FromPath[str]) -> Response[str]:
    return await key_page(view_of(request), key_id)


async def key_page(view: View, key_id: str, *, error: AtlasError | None = None, form: Form | None = None) -> Response[str]:
    key = find(view, key_id)
    return await show(
        view,
        "key.html",
        status=error.status if error else 200,
        key=key,
        owner=(await asyncio.to_thread(names_of, view.deps.store, view.only_owner)).user(key.owner),
        state=state_of(key),
        scopes=scopes_for(view, key),
        is_own=is_own(view, key),
        models=tuple(dict.fromkeys((*models_of(view), *(key.models or ())))),
        limits=limit_values(key.limits),
        graces=GRACES_S,
        done=done(view),
        error=error,
        form=form or Form(()),
    )


@post("/keys/{key_id:str}", opt={"access": "page"})
async def update(request: HTTPRequest, key_id: FromPath[str]) -> Response[str]:
    view = view_of(request)
    form = await read_form(request, view)
    key = find(view, key_id)
    try:
        wanted = read_key(form, view, key)
        await asyncio.to_thread(view.deps.store.keys.update, key.id, actor=view.actor, **wanted._asdict())
    except AtlasError as error:
        return await key_page(view, key_id, error=error, form=form)
    return redirect(f"/keys/{key.id}?done=saved")


@post("/keys/{key_id:str}/rotate", opt={"access": "page"})
async def rotate(request: HTTPRequest, key_id: FromPath[str]) -> Response[str]:
    view = view_of(request)
    form = await read_form(request, view)
    key = find(view, key_id)
    check_own(view, key)
    try:
        grace_s = GRACES_S[form.choice("grace", tuple(GRACES_S))]
        made = await asyncio.to_thread(view.deps.store.keys.rotate, key.id, grace_s=grace_s, actor=view.actor)
    except AtlasError as error:
        return await key_page(view, key_id, error=error)
    return await show_once(view, made, is_new=False, grace_s=grace_s)


@post("/keys/{key_id:str}/{action:str}", opt={"access": "page"})
async def switch(request: HTTPRequest, key_id: FromPath[str], action: FromPath[str]) -> Response[str]:
    """Pause, resume or revoke: the next request with this key already meets it."""
    view = view_of(request)
    await read_form(request, view)
    key, store = find(view, key_id), view.deps.store.keys
    actions = {
        "pause": lambda: store.set_active(key.id, False, actor=view.actor),
        "resume": lambda: store.set_active(key.id, True, actor=view.actor),
        "revoke": lambda: store.revoke(key.id, actor=view.actor),
    }
    if action not in actions:
        raise BadRequest(f"a key can be rotated, paused, resumed and revoked, not {action[:20]!r}")
    try:
        await asyncio.to_thread(actions[action])
    except AtlasError as error:
        return await key_page(view, key_id, error=error)
    return redirect(f"/keys/{key.id}?done={action}")


async def show_once(view: View, made: MintedKey, *, is_new: bool, grace_s: float = 0.0) -> Response[str]:
    engine = view.deps.engine()
    model = engine.capabilities.model if engine else "MODEL"
    context_tokens = engine.capabilities.context_tokens if engine else 0
    return await show(
        view,
        "key_made.html",
        made=made,
        is_new=is_new,
        grace_s=grace_s,
        snippets=snippets(view.base_url, model, key=made.key, context_tokens=context_tokens),
    )


def find(view: View, key_id: str) -> KeyInfo:
    """Raises NotFound: no such key, or another user's, which is not told apart."""
    key = next((key for key in view.deps.store.keys.list(view.only_owner) if key.id == key_id), None)
    if key is None:
        raise NotFound("there is no such key of yours" if view.only_owner else "there is no such key")
    return key


def is_own(view: View, key: KeyInfo) -> bool:
    """Where nobody signs in, every key is one's own."""
    return view.session is None or key.owner == view.who.owner


def check_own(view: View, key: KeyInfo) -> None:
    """Raises Forbidden: a rotated key is shown, and nobody may see another's, admins included."""
    if not is_own(view, key):
        raise Forbidden("only its user can rotate a key, because the new one is shown; you can pause or revoke it")


def read_key(form: Form, view: View, key: KeyInfo | None = None) -> Wanted:
    """Raises BadRequest: a field is wrong, or a scope is not this user's to give."""
    name = form.text("name", max_length=100)
    if not name:
        raise BadRequest("give the key a name: it is how you will tell your keys apart", param="name")
    scopes = form.all("scopes")
    if not scopes:
        raise BadRequest("choose at least one scope: a key without any can do nothing", param="scopes")
    if strange := set(scopes) - set(scopes_for(view, key)):
        raise BadRequest(f"scope {min(strange)[:20]!r} is not yours to give", param="scopes")
    return Wanted(name, scopes, form.all("models") or None, bool(form.text("allow_remote")), form.limits())


def scopes_for(view: View, key: KeyInfo | None = None) -> dict[str, str]:
    """Scopes this viewer may give to a key of their own, or to someone else's: there the admins' ones can only be kept."""
    kept = key.scopes if key else ()
    may_give_all = view.is_admin and (key is None or is_own(view, key))
    return {scope: what for scope, what in SCOPES.items() if may_give_all or scope not in ADMIN_SCOPES or scope in kept}


def models_of(view: View) -> tuple[str, ...]:
    """Ids a key may be limited to: loaded ones, those with an adapter, those on this machine, and who stands in."""
    engines = view.deps.engines()
    adapted = [f"{model}:{adapter.name}" for model, engine in engines.items() for adapter in engine.adapters()]
    standing_in = (*view.deps.settings().fallback.chains, *view.deps.upstreams.engines)
    return tuple(dict.fromkeys((*engines, *adapted, *view.deps.registry.installed(), *standing_in)))


def is_paused(key: KeyInfo, now_s: float) -> bool:
    return not key.is_active and key.revoked_at is None and (key.expires_at is None or key.expires_at > now_s)


def state_of(key: KeyInfo) -> tuple[str, str]:
    """(mood, word)."""
    now_s = time.time()
    if key.revoked_at is not None and key.revoked_at <= now_s:
        return "off", "revoked"
    if key.expires_at is not None and key.expires_at <= now_s:
        return "off", "expired"
    if not key.is_active:
        return "warn", "paused"
    return ("wait", "ending") if key.rotated_to else ("good", "active")
