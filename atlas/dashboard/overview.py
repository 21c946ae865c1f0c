"""Overview: is it well, how fast is it, what has it done, and how do I connect."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from litestar import Response, get
from markupsafe import Markup

from atlas.dashboard.budget import budgets_of
from atlas.dashboard.charts import BarChart, bar_chart, spark_line
from atlas.dashboard.people import Names, names_of
from atlas.dashboard.snippets import snippets
from atlas.dashboard.status import show, status_of
from atlas.dashboard.view import HTTPRequest, View, fragment, view_of
from atlas.store import Store, UsageTotal
from atlas.types import Activity

HOUR_S, DAY_S = 3600.0, 86400.0
LATEST = 12
SPARK_REQUESTS = 60


class Work(NamedTuple):
    """What the ledger says was done: by one user, or by all. `has_keys`: a key that a program could use exists."""

    today: UsageTotal | None
    days: BarChart
    hours: BarChart
    has_keys: bool
    names: Names


@get("/", opt={"access": "page"})
async def overview(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    engine = view.deps.engine()
    model = engine.capabilities.model if engine else "MODEL"
    context_tokens = engine.capabilities.context_tokens if engine else 0
    connect = snippets(view.base_url, model, context_tokens=context_tokens)
    return await show(view, "overview.html", panels=await panels(view), snippets=connect, model=model)


async def panels(view: View) -> dict[str, Markup]:
    """The live parts of the page by name."""
    deps = view.deps
    work = await asyncio.to_thread(work_of, deps.store, view.only_owner)
    budgets = await budgets_of(view)
    reading = await deps.memory.hardware.read()
    recent = [activity for activity in deps.traffic.recent(1000) if is_visible(view, activity)]
    running = [activity for activity in deps.traffic.open() if is_visible(view, activity)]
    engine = deps.engine()
    return {
        "health": fragment(view, "parts/health.html", **await status_of(view)),
        "now": fragment(
            view,
            "parts/now.html",
            rates=deps.traffic.rates(),
            work=work,
            stats=engine.stats() if engine else None,
            sparks=sparks_of(recent[:SPARK_REQUESTS]),
        ),
        "budget": fragment(view, "parts/budget.html", budgets=budgets) if budgets != () else Markup(""),
        "machine": fragment(view, "parts/machine.html", reading=reading),
        "trend": fragment(view, "parts/trend.html", work=work),
        "latest": fragment(view, "parts/latest.html", work=work, activities=(running + recent)[:LATEST]),
    }


def is_visible(view: View, activity: Activity) -> bool:
    return view.only_owner in (None, activity.usage.owner)


def work_of(store: Store, owner: str | None, *, now: float | None = None) -> Work:
    """Seven days by day and 24 hours by hour, today's included. Reads the ledger: call it in a thread."""
    now = time.time() if now is None else now
    days = [datetime.fromtimestamp(now, UTC).date() - timedelta(days=back) for back in range(6, -1, -1)]
    since = datetime(days[0].year, days[0].month, days[0].day, tzinfo=UTC).timestamp()
    by_day = {row.group: row for row in store.usage.totals(since=since, until=now + HOUR_S, group="day", owner=owner)}
    first_hour = now - now % HOUR_S - 23 * HOUR_S
    by_hour = {row.group: row for row in store.usage.totals(since=first_hour, until=now + HOUR_S, group="hour", owner=owner)}
    hours = [datetime.fromtimestamp(first_hour + step * HOUR_S, UTC) for step in range(24)]
    return Work(
        today=by_day.get(days[-1].isoformat()),
        days=bar_chart([(day.strftime("%a %d %b"), split_tokens(by_day.get(day.isoformat()))) for day in days]),
        hours=bar_chart(
            [(hour.strftime("%H:00"), (count_requests(by_hour.get(hour.strftime("%Y-%m-%dT%H:00Z"))),)) for hour in hours]
        ),
        has_keys=any(key.is_valid(now) for key in store.keys.list(owner)),
        names=names_of(store, owner),
    )


def split_tokens(total: UsageTotal | None) -> tuple[float, float]:
    """(prompt, completion) tokens."""
    return (total.prompt_tokens, total.completion_tokens) if total else (0, 0)


def count_requests(total: UsageTotal | None) -> float:
    return total.requests if total else 0


def sparks_of(recent: list[Activity]) -> dict[str, Any]:
    """Lines of what the last requests felt like, oldest first."""
    usages = [activity.usage for activity in reversed(recent)]
    spans = [(usage.completion_tokens, usage.wall_s - (usage.ttft_s or 0)) for usage in usages]
    return {
        "ttft": spark_line([usage.ttft_s for usage in usages if usage.ttft_s is not None]),
        "speed": spark_line([tokens / span_s for tokens, span_s in spans if tokens > 1 and span_s > 0]),
    }
