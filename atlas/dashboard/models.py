"""Models: the one that answers, those on this machine, those to be had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Response, get, post
from markupsafe import Markup

from atlas.dashboard.forms import Form, read_form
from atlas.dashboard.messages import done
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, fragment, redirect, view_of
from atlas.engine import LoadedModels
from atlas.errors import AtlasError, Conflict, Unsupported
from atlas.store import Change

MISTAKES_S = 1.0  # a model that cannot be loaded for a reason that is in its name or its size is known to fail by then


@get("/models", opt={"access": "page"})
async def models(request: HTTPRequest) -> Response[str]:
    return await models_page(view_of(request))


async def models_page(view: View, *, error: AtlasError | None = None, form: Form | None = None) -> Response[str]:
    status = 200 if error is None else 400 if error.status >= 500 else error.status  # what the registry refuses is the user's
    return await show(
        view,
        "models.html",
        status=status,
        done=done(view),
        error=error,
        form=form or Form(()),
        panels=await panels(view),
        catalog=catalog(view),
    )


async def panels(view: View) -> dict[str, Markup]:
    installed = await asyncio.to_thread(view.deps.registry.installed)
    loaded, states = view.deps.loaded, view.deps.model_states()
    return {
        "loaded": fragment(
            view, "parts/loaded.html", engines=view.deps.engines(), states=states, failure=loaded.failure if loaded else ""
        ),
        "upstreams": upstreams_panel(view),
        "pulls": fragment(view, "parts/pulls.html", pulls=view.deps.memory.pulls.shown()),
        "installed": fragment(view, "parts/installed.html", installed=installed, states=states),
    }


def upstreams_panel(view: View) -> Markup:
    """Who stands in for whom, and how those servers are."""
    upstreams, chains = view.deps.upstreams, view.deps.settings().fallback.chains
    if not chains:
        return Markup("")
    return fragment(view, "parts/upstreams.html", servers=upstreams.servers, chains=chains)


def catalog(view: View) -> list[Any]:
    """Models that can be pulled by name."""
    return list(view.deps.registry.catalog.values())


@post("/models/pull", opt={"access": "page-admin"})
async def pull(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_form(request, view)
    name = form.text("address", max_length=2000) or form.text("name")
    try:
        view.deps.memory.pulls.start(view.deps.registry, name)
        await note(view, "model.pulled", name)
    except AtlasError as error:
        return await models_page(view, error=error, form=form)
    return redirect("/models")


@post("/models/remove", opt={"access": "page-admin"})
async def remove(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_form(request, view)
    name = form.text("name")
    try:
        if name in view.deps.model_states():
            raise Conflict(f"{name} is loaded; unload it before you remove it")
        await asyncio.to_thread(view.deps.registry.remove, name)
        await note(view, "model.removed", name)
    except AtlasError as error:
        return await models_page(view, error=error)
    return redirect("/models?done=removed")


@post("/models/load", opt={"access": "page-admin"})
async def load(request: HTTPRequest) -> Response[str]:
    """It may take minutes: the page says how it stands, and the error of one that fails at once."""
    view = view_of(request)
    form = await read_form(request, view)
    name, instead_of = form.text("name"), form.text("instead_of")
    return await _done_soon(view, "model.loaded", name, lambda loaded: loaded.load(name, instead_of=instead_of))


@post("/models/unload", opt={"access": "page-admin"})
async def unload(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_form(request, view)
    name = form.text("name")
    return await _done_soon(view, "model.unloaded", name, lambda loaded: loaded.unload(name))


async def _done_soon(view: View, action: str, name: str, act: Callable[[LoadedModels], Awaitable[object]]) -> Response[str]:
    """Begin it; whoever has to be told of a mistake is told, else it goes on by itself."""
    loaded = view.deps.loaded
    if loaded is None:
        return await models_page(view, error=Unsupported("this server loads no models while it runs"))

    async def work() -> None:
        await act(loaded)
        await note(view, action, name)

    working = view.deps.memory.keep(asyncio.create_task(work()))
    await asyncio.wait({working}, timeout=MISTAKES_S)
    error = working.exception() if working.done() else None
    if isinstance(error, AtlasError):
        return await models_page(view, error=error)
    if error is not None:
        raise error
    return redirect("/models")


async def note(view: View, action: str, name: str) -> None:
    """For the audit log. What follows a question mark in an address may be a token."""
    address = name.partition("?")[0]
    change = Change(
        at=time.time(),
        actor=view.actor,
        action=action,
        object=address.rpartition("/")[2][:64],
        detail={"from": address} if "/" in address else {},
        source=view.source,
    )
    await asyncio.to_thread(view.deps.store.audit.note, change)
