"""Models: the one that answers, those on this machine, those to be had."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from litestar import Response, get, post
from markupsafe import Markup

from atlas.dashboard.forms import Form, read_form
from atlas.dashboard.messages import done
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, fragment, redirect, view_of
from atlas.errors import AtlasError, Conflict
from atlas.store import Change


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
    engine = view.deps.engine()
    installed = await asyncio.to_thread(view.deps.registry.installed)
    what, stats = (engine.capabilities, engine.stats()) if engine else (None, None)
    return {
        "loaded": fragment(view, "parts/loaded.html", what=what, stats=stats),
        "upstreams": upstreams_panel(view),
        "pulls": fragment(view, "parts/pulls.html", pulls=view.deps.memory.pulls.shown()),
        "installed": fragment(view, "parts/installed.html", installed=installed, loaded=what.model if what else ""),
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
        engine = view.deps.engine()
        if engine is not None and engine.capabilities.model == name:
            raise Conflict(f"{name} is loaded; start the server with another model before you remove it")
        await asyncio.to_thread(view.deps.registry.remove, name)
        await note(view, "model.removed", name)
    except AtlasError as error:
        return await models_page(view, error=error)
    return redirect("/models?done=removed")


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
