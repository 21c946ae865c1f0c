"""Audit: who changed what, and whether the chain of entries is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from litestar import Response, get

from atlas.dashboard.people import names_of
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, view_of
from atlas.store import AuditEntry

PAGE_ROWS = 100


@get("/audit", opt={"access": "page-admin"})
async def audit(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    store, before = view.deps.store, view.query.get("before", "")
    first = int(before) if before.isascii() and before.isdigit() and len(before) < 16 else None
    entries = await asyncio.to_thread(store.audit.entries, PAGE_ROWS, first)
    broken = await asyncio.to_thread(store.audit.verify)
    names = await asyncio.to_thread(names_of, store, None)
    older = entries[-1].seq if len(entries) == PAGE_ROWS else None
    return await show(view, "audit.html", entries=entries, details_of=details_of, broken=broken, names=names, older=older)


def details_of(entry: AuditEntry) -> Iterator[tuple[str, object]]:
    """What is said beside an entry, nested values one by one, empty ones left out."""
    for name, value in entry.detail.items():
        inner = value if isinstance(value, Mapping) else {name: value}
        yield from ((key, item) for key, item in inner.items() if item not in ("", None))
