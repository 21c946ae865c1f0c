"""Usage: who used what, when, and what is left; and the same as a file."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, NamedTuple

import msgspec
from litestar import Response, get
from litestar.params import FromPath
from litestar.response import Stream
from markupsafe import Markup

from atlas.dashboard.budget import budgets_of
from atlas.dashboard.charts import BarChart, bar_chart, level
from atlas.dashboard.people import PLAYGROUND, Names, names_of
from atlas.dashboard.status import show
from atlas.dashboard.view import HEADERS, HTTPRequest, View, fragment, view_of
from atlas.errors import NotFound
from atlas.store import Store, UsageTotal
from atlas.types import Usage

DAY_S = 86400.0
RANGES: Mapping[str, int] = {"1": 1, "7": 7, "30": 30, "90": 90}  # days, today's included
DEFAULT_RANGE = "7"
EXPORT_BATCH = 500  # events turned into text at a time, so that the export neither fills memory nor holds the event loop
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
Group = Literal["key", "user", "model", "day", "hour"]


class Cell(NamedTuple):
    """An hour of a weekday: requests over the whole range, and the shade."""

    hour: int
    requests: int
    level: int


class Report(NamedTuple):
    """Everything on the page, for one range and one user or all."""

    total: UsageTotal | None
    days: BarChart
    by_user: Sequence[UsageTotal]
    by_key: Sequence[UsageTotal]
    by_model: Sequence[UsageTotal]
    heat: Sequence[tuple[str, Sequence[Cell]]]
    names: Names


@get("/usage", opt={"access": "page"})
async def usage(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    return await show(view, "usage.html", panels=await panels(view), range=range_of(view), ranges=RANGES)


async def panels(view: View) -> dict[str, Markup]:
    report = await asyncio.to_thread(report_of, view.deps.store, view.only_owner, days=RANGES[range_of(view)])
    budgets = await budgets_of(view)
    return {
        "budget": fragment(view, "parts/budget.html", budgets=budgets),
        "usage": fragment(view, "parts/usage.html", report=report, hours=range(24)),
    }


@get("/usage/export/{form:str}", opt={"access": "page"})
async def export(request: HTTPRequest, form: FromPath[str]) -> Stream:
    """Every request of the range as CSV or JSON, one's own or, for admins, everyone's."""
    writers: Mapping[str, tuple[Writer, str]] = {"csv": (csv_lines, "text/csv"), "json": (json_lines, "application/json")}
    if form not in writers:
        raise NotFound(f"usage is exported as csv or json, not as {form[:20]!r}")
    view = view_of(request)
    write, media_type = writers[form]
    since, until = span(RANGES[range_of(view)])
    names = await asyncio.to_thread(names_of, view.deps.store, view.only_owner)
    events = view.deps.store.usage.events(since=since, until=until, owner=view.only_owner)
    name = f"atlas-usage-{datetime.now(UTC):%Y-%m-%d}-{range_of(view)}d.{form}"
    headers = {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    return Stream(in_thread(write(events, names)), media_type=media_type, headers=headers)


Writer = Callable[[Iterator[Usage], Names], Iterator[str]]
COLUMNS = tuple(field.name for field in msgspec.structs.fields(Usage))


def csv_lines(events: Iterator[Usage], names: Names) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("time", "user", "key", *COLUMNS))
    for event in events:
        values = msgspec.structs.astuple(event)
        named = (datetime.fromtimestamp(event.at, UTC).isoformat(), names.user(event.owner), names.key(event.key_id), *values)
        writer.writerow([plain(value) for value in named])
        yield _take(buffer)
    yield _take(buffer)


def json_lines(events: Iterator[Usage], names: Names) -> Iterator[str]:
    """One JSON array, an event a line; the names beside the fields of the ledger."""
    before = "["
    for event in events:
        named = {"user": names.user(event.owner), "key": names.key(event.key_id), **msgspec.structs.asdict(event)}
        yield before + "\n" + msgspec.json.encode(named).decode()
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def plain(value: object) -> object:
    """A text that a spreadsheet would take for a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


async def in_thread(lines: Iterator[str]) -> AsyncIterator[str]:
    """The lines in batches, each made in a thread: the ledger is read as the client takes them."""
    while batch := await asyncio.to_thread(lambda: "".join(islice(lines, EXPORT_BATCH))):
        yield batch


def report_of(store: Store, owner: str | None, *, days: int, now: float | None = None) -> Report:
    """Reads the ledger: call it in a thread."""
    since, until = span(days, now=now)

    def totals(group: Group) -> list[UsageTotal]:
        return list(store.usage.totals(since=since, until=until, group=group, owner=owner))

    names = names_of(store, owner)
    by_day = {row.group: row for row in totals("day")}
    first = datetime.fromtimestamp(since, UTC).date()
    dates = [first + timedelta(days=step) for step in range(days)]
    form = "%a %d %b" if days <= 7 else "%d %b"
    rows = [(date.strftime(form), by_day.get(date.isoformat())) for date in dates]
    return Report(
        total=add_up(list(by_day.values())),
        days=bar_chart([(label, (row.prompt_tokens, row.completion_tokens) if row else (0, 0)) for label, row in rows]),
        by_user=largest(totals("user")),
        by_key=largest(merged(totals("key"), names)),
        by_model=largest(totals("model")),
        heat=heat_map(totals("hour")),
        names=names,
    )


def range_of(view: View) -> str:
    wanted = view.query.get("range", DEFAULT_RANGE)
    return wanted if wanted in RANGES else DEFAULT_RANGE


def span(days: int, *, now: float | None = None) -> tuple[float, float]:
    """From UTC midnight `days` - 1 days ago until the end of today."""
    now = time.time() if now is None else now
    midnight = now - now % DAY_S
    return midnight - (days - 1) * DAY_S, midnight + DAY_S


def largest(rows: Sequence[UsageTotal]) -> list[UsageTotal]:
    return sorted(rows, key=lambda row: -(row.prompt_tokens + row.completion_tokens))


def merged(rows: Sequence[UsageTotal], names: Names) -> list[UsageTotal]:
    """One row for all keys of the playground: each lives a quarter of an hour."""
    short = [row for row in rows if names.keys.get(row.group) == PLAYGROUND]
    rest = [row for row in rows if names.keys.get(row.group) != PLAYGROUND]
    total = add_up(short)
    return [*rest, msgspec.structs.replace(total, group=short[0].group)] if total else rest


def add_up(rows: Sequence[UsageTotal]) -> UsageTotal | None:
    if not rows:
        return None
    names = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost", "wall_s")
    sums = {name: sum(getattr(row, name) for row in rows) for name in names}
    return UsageTotal(group="", **sums)


def heat_map(hours: Sequence[UsageTotal]) -> list[tuple[str, list[Cell]]]:
    """Requests by weekday and hour of the day, UTC."""
    counts = [[0] * 24 for _ in WEEKDAYS]
    for row in hours:
        hour = datetime.strptime(row.group, "%Y-%m-%dT%H:00Z").replace(tzinfo=UTC)
        counts[hour.weekday()][hour.hour] += row.requests
    top = max(max(row) for row in counts)
    return [
        (day, [Cell(hour, requests, level(requests, top)) for hour, requests in enumerate(row)])
        for day, row in zip(WEEKDAYS, counts, strict=True)
    ]


def _take(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
