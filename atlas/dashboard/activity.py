"""Activity: every request as it runs and after it has ended, one line each; sizes and times, never a text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args
from urllib.parse import urlencode

from litestar import Response, get, post
from litestar.params import FromPath
from markupsafe import Markup

from atlas.dashboard.forms import read_form
from atlas.dashboard.overview import is_visible
from atlas.dashboard.people import PLAYGROUND, Names, names_of
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, fragment, page, redirect, view_of
from atlas.errors import NotFound
from atlas.store import Change, Store
from atlas.types import Activity, RequestState, Usage

PAGE_ROWS = 50
STATES: tuple[RequestState, ...] = get_args(RequestState)


class Filters(NamedTuple):
    """What the table is narrowed to; empty is everything. Users and keys by id."""

    user: str = ""
    key: str = ""
    model: str = ""
    state: str = ""

    def accept(self, usage: Usage) -> bool:
        wanted = ((self.user, usage.owner), (self.key, usage.key_id), (self.model, usage.model), (self.state, usage.state))
        return all(not want or want == have for want, have in wanted)


class Shown(NamedTuple):
    """Rows of one page; `older` is the query value that leads on, empty at the end."""

    rows: tuple[Activity, ...]
    names: Names
    models: tuple[str, ...]
    older: str


@get("/activity", opt={"access": "page"})
async def activity(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    shown = await rows_of(view)
    filters = filters_of(view)
    models = dict.fromkeys((*shown.models, *((filters.model,) if filters.model else ())))
    return await show(
        view,
        "activity.html",
        panels=render(view, shown),
        shown=shown,
        filters=filters,
        key_options=[("", "all"), *((key, name) for key, name in shown.names.keys.items() if name != PLAYGROUND)],
        model_options=[("", "all"), *((model, model) for model in models)],
        state_options=[("", "all"), *((state, state) for state in STATES)],
    )


async def panels(view: View) -> dict[str, Markup]:
    return render(view, await rows_of(view))


def render(view: View, shown: Shown) -> dict[str, Markup]:
    kept = {name: value for name, value in view.query.items() if name in Filters._fields and value}
    newest, older = (page_link(kept | {"before": before}) for before in ("", shown.older))
    links = {"newest": newest if cursor_of(view) else "", "older": older if shown.older else ""}
    return {"rows": fragment(view, "parts/rows.html", shown=shown, is_filtered=any(filters_of(view)), **links)}


def page_link(query: Mapping[str, str]) -> str:
    wanted = urlencode({name: value for name, value in query.items() if value})
    return f"/activity?{wanted}" if wanted else "/activity"


@get("/activity/{request_id:str}", opt={"access": "page"})
async def one_request(request: HTTPRequest, request_id: FromPath[str]) -> Response[str]:
    """One request on a page of its own; the script asks for the part that goes into the drawer."""
    view = view_of(request)
    found = await find(view, request_id)
    names = await asyncio.to_thread(names_of, view.deps.store, view.only_owner)
    context: dict[str, Any] = {"activity": found, "names": names, "is_open": is_open(found)}
    if request.headers.get("x-fragment"):
        return page(view, "parts/request.html", **context)
    return await show(view, "request.html", **context)


@post("/activity/{request_id:str}/abort", opt={"access": "page"})
async def abort(request: HTTPRequest, request_id: FromPath[str]) -> Response[str]:
    """Its owner may, and admins."""
    view = view_of(request)
    await read_form(request, view)
    found = await find(view, request_id)
    if view.deps.traffic.abort(found.usage.request_id, actor=view.actor):
        aborted = Change(
            at=time.time(), actor=view.actor, action="request.aborted", object=found.usage.request_id, source=view.source
        )
        await asyncio.to_thread(view.deps.store.audit.note, aborted)
    return redirect(f"/activity/{found.usage.request_id}")


def is_open(activity: Activity) -> bool:
    return activity.usage.state in ("queued", "running")


def filters_of(view: View) -> Filters:
    """Of the address; members can narrow by user, but see only themselves anyway."""
    return Filters(*(view.query.get(name, "") for name in Filters._fields))


async def find(view: View, request_id: str) -> Activity:
    """Raises NotFound: no such request, or another user's (which is not told apart)."""
    live = view.deps.traffic.find(request_id)
    usage = None if live else await asyncio.to_thread(view.deps.store.usage.get, request_id)
    found = live or (Activity(usage=usage) if usage else None)
    if found is None or not is_visible(view, found):
        raise NotFound(f"no request {request_id[:80]}; requests older than ledger.usage_days are no longer kept one by one")
    return found


async def rows_of(view: View) -> Shown:
    """The running ones, then the ended ones, newest first: of the ledger, and refused ones that only memory knows."""
    filters, before = filters_of(view), cursor_of(view)
    traffic = view.deps.traffic
    live = () if before else (*traffic.open(), *traffic.recent(200))
    ended, names = await asyncio.to_thread(read_ledger, view.deps.store, view.only_owner, filters, before)
    last = ended[-1] if len(ended) == PAGE_ROWS else None
    oldest = last.at if last else 0.0  # what is older stands on the next page
    known = {one.usage.request_id: one for one in live if is_visible(view, one) and filters.accept(one.usage)}
    known = {name: one for name, one in known.items() if is_open(one) or one.usage.at >= oldest}
    known |= {usage.request_id: known.get(usage.request_id) or Activity(usage=usage) for usage in ended}
    rows = tuple(sorted(known.values(), key=lambda one: (not is_open(one), -one.usage.at)))
    return Shown(
        rows=rows,
        names=names,
        models=tuple(dict.fromkeys(one.usage.model for one in rows if one.usage.model)),
        older=f"{last.at!r},{last.request_id}" if last else "",
    )


def read_ledger(store: Store, owner: str | None, filters: Filters, before: tuple[float, str] | None) -> tuple[list[Usage], Names]:
    names = names_of(store, owner)
    if owner is not None and filters.user not in ("", owner):
        return [], names
    ended = store.usage.recent(
        limit=PAGE_ROWS,
        before=before,
        owner=owner or filters.user or None,
        key_id=filters.key or None,
        model=filters.model or None,
        state=next((known for known in STATES if known == filters.state), None),
    )
    return list(ended), names


def cursor_of(view: View) -> tuple[float, str] | None:
    """Where an older page begins; nonsense is the newest page."""
    at, _, request_id = view.query.get("before", "").partition(",")
    try:
        return (float(at), request_id) if request_id else None
    except ValueError:
        return None
