"""Benches: what `atlas bench` has measured here, each with its report, and any two of them side by side."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from litestar import Response, get
from litestar.params import FromPath

from atlas import bench
from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, view_of
from atlas.errors import NotFound, OperatorError

LISTED = 20  # the newest; `atlas bench list` shows all (chosen: each takes some tens of milliseconds)


class Row(NamedTuple):
    """One bench of the list; `trouble`: why it cannot be read."""

    name: str
    kept: bench.Kept | None = None
    solved: dict[str, str] | None = None
    trouble: str = ""


@get("/bench", opt={"access": "page-admin"})
async def benches(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    runs = view.deps.benches
    first, second = view.query.get("first", ""), view.query.get("second", "")
    pairs, error = await asyncio.to_thread(compared, runs, first, second)
    rows = await asyncio.to_thread(listed, runs)
    return await show(
        view,
        "benches.html",
        rows=rows,
        limit=LISTED,
        choices=[("", "choose"), *((row.name, row.name) for row in rows if row.kept)],
        first=first,
        second=second,
        pairs=pairs,
        error=error,
        points=points,
    )


@get("/bench/{name:str}", opt={"access": "page-admin"})
async def one_bench(request: HTTPRequest, name: FromPath[str]) -> Response[str]:
    view = view_of(request)
    if view.deps.benches is None:
        raise NotFound("this server has no data directory, and so no benches")
    try:
        kept = await asyncio.to_thread(view.deps.benches.read, name)
    except OperatorError as error:
        raise NotFound(error.message) from None
    report = await asyncio.to_thread(bench.body_html, kept.settings, kept.records)
    return await show(view, "bench.html", kept=kept, report=report, folder=view.deps.benches.folder(name))


def listed(runs: bench.Runs | None) -> list[Row]:
    names = runs.names() if runs else []
    return [_row(runs, name) for name in names[::-1][:LISTED]] if runs else []


def _row(runs: bench.Runs, name: str) -> Row:
    try:
        kept = runs.read(name)
    except OperatorError as error:
        return Row(name, trouble=error.message)
    rates = bench.solved_by_method(kept.settings, kept.records)
    return Row(name, kept, {title: bench.rate_text(rate) for title, rate in rates.items()})


def compared(runs: bench.Runs | None, first: str, second: str) -> tuple[dict[str, bench.Difference], OperatorError | None]:
    """Nothing, and no error, while two are not chosen."""
    if runs is None or not (first and second):
        return {}, None
    try:
        return runs.compare(first, second), None
    except OperatorError as error:
        return {}, error


def points(share: float) -> str:
    """A difference of two rates, in percentage points."""
    return f"{100 * share:+.1f}"
