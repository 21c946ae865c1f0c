"""/api/usage, /api/budget, /api/requests: what was used, is left, runs. One's own; administrators name a user, or "all"."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, get, post
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Schema
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from atlas.errors import BadRequest
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.portal import actor_of, caller_of, is_administrator, note, portal_replies, store_of, unseen, whose
from atlas.gateway.portal_wire import DAY_S, Done
from atlas.gateway.wire import Wire
from atlas.store import Budget, UsageTotal
from atlas.types import Activity, Usage

Group = Literal["key", "user", "model", "day", "hour"]
From = Annotated[str | None, QueryParameter(name="from", description="ISO 8601; 30 days ago by default")]
To = Annotated[str | None, QueryParameter(name="to", description="ISO 8601; a date includes that day; now by default")]
EXPORT_CHUNK_ROWS = 500  # rows fetched and sent at a time: what an export holds in memory
USAGE_COLUMNS = Usage.__struct_fields__
TOTAL_COLUMNS = UsageTotal.__struct_fields__
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run such a cell


class UsageReply(Wire):
    """V1's five numbers, true and one's own; `today` is the UTC day. With `group`, the sums within `from` and `to`."""

    total_requests: int
    total_tokens_input: int
    total_tokens_output: int
    requests_today: int
    tokens_today: int
    groups: list[UsageTotal] | None = None


class BudgetReply(Wire):
    """Only what has a limit is listed."""

    budgets: tuple[Budget, ...]


class RequestList(Wire):
    open: list[Activity]
    recent: list[Activity]


class Span(msgspec.Struct, frozen=True):
    """Unix seconds, `until` exclusive."""

    since: float
    until: float


@dataclass
class TableOperation(Operation):
    """An operation whose 200 may also be a table."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse) and answer.content is not None:
            for kind in ("text/csv", "application/jsonl"):
                answer.content.setdefault(kind, OpenAPIMediaType(schema=Schema(description="Rows")))


@get(
    "/usage",
    opt={"access": "account"},
    tags=["usage"],
    summary="What was used: totals, or sums by key, user, model, day or hour",
    responses=portal_replies(UsageReply),
    operation_class=TableOperation,
)
async def usage(
    request: HTTPRequest,
    group: FromQuery[Group | None] = None,
    since: From = None,
    until: To = None,
    format: FromQuery[Literal["json", "csv"]] = "json",  # noqa: A002 - the parameter's name
    user: FromQuery[str | None] = None,
) -> Response[UsageReply] | Response[str]:
    exchange = exchange_of(request)
    owner, span = whose(exchange, user), to_span(since, until)
    groups = await sums(exchange, span, group or "day", owner)
    if format == "csv":
        return Response("".join(to_csv(TOTAL_COLUMNS, groups)), media_type="text/csv", headers=attachment("usage.csv"))
    now_s = time.time()
    ever, today = await asyncio.gather(
        sums(exchange, Span(0.0, now_s), "user", owner), sums(exchange, Span(now_s - now_s % DAY_S, now_s), "user", owner)
    )
    reply = UsageReply(
        total_requests=sum(total.requests for total in ever),
        total_tokens_input=sum(total.prompt_tokens for total in ever),
        total_tokens_output=sum(total.completion_tokens for total in ever),
        requests_today=sum(total.requests for total in today),
        tokens_today=sum(total.prompt_tokens + total.completion_tokens for total in today),
        groups=groups if group else None,
    )
    return Response(reply)


@get(
    "/usage/export",
    opt={"access": "account"},
    tags=["usage"],
    summary="Every single request, as CSV or as JSON lines",
    responses=portal_replies(Done) | {200: ResponseSpec(str, generate_examples=False, description="Rows", media_type="text/csv")},
    operation_class=TableOperation,
)
async def export_usage(
    request: HTTPRequest,
    since: From = None,
    until: To = None,
    format: FromQuery[Literal["jsonl", "csv"]] = "csv",  # noqa: A002 - the parameter's name
    user: FromQuery[str | None] = None,
) -> Stream:
    exchange = exchange_of(request)
    owner, span = whose(exchange, user), to_span(since, until)
    events = store_of(exchange).usage.events(since=span.since, until=span.until, owner=owner)
    if format == "csv":
        return Stream(in_thread(to_csv(USAGE_COLUMNS, events)), media_type="text/csv", headers=attachment("requests.csv"))
    lines = (msgspec.json.encode(event).decode() + "\n" for event in events)
    return Stream(in_thread(lines), media_type="application/jsonl", headers=attachment("requests.jsonl"))


@get(
    "/budget",
    opt={"access": "known"},
    tags=["usage"],
    summary="One's budgets, and how much of them is used",
    responses=portal_replies(BudgetReply),
)
async def budget(request: HTTPRequest) -> BudgetReply:
    exchange = exchange_of(request)
    who, live = caller_of(exchange), exchange.deps.live
    if live is None:
        return BudgetReply(budgets=())
    remaining = await live.remaining(who.owner, who.key_id, who.user_limits, who.key_limits)
    return BudgetReply(budgets=remaining.budgets)


@get(
    "/requests",
    opt={"access": "account"},
    tags=["usage"],
    summary="Requests that wait or run, and the latest that ended",
    responses=portal_replies(RequestList),
)
async def list_requests(request: HTTPRequest, user: FromQuery[str | None] = None) -> RequestList:
    exchange = exchange_of(request)
    owner, traffic = whose(exchange, user), exchange.deps.traffic
    return RequestList(
        open=[activity for activity in traffic.open() if owner in (None, activity.usage.owner)],
        recent=[activity for activity in traffic.recent() if owner in (None, activity.usage.owner)],
    )


@post(
    "/requests/{request_id:str}/abort",
    status_code=200,
    opt={"access": "account"},
    tags=["usage"],
    summary="End a request of one's own; administrators: anybody's",
    responses=portal_replies(Done),
)
async def abort_request(request: HTTPRequest, request_id: FromPath[str]) -> Done:
    exchange = exchange_of(request)
    who, traffic = caller_of(exchange), exchange.deps.traffic
    visible = {activity.usage.request_id: activity.usage.owner for activity in traffic.open()}
    owner = visible.get(request_id)
    if owner is None or (owner != who.owner and not is_administrator(who)):
        raise unseen("running request", request_id)
    if traffic.abort(request_id, actor=actor_of(exchange)):
        await note(exchange, "request.aborted", request_id)
    return Done(message=f"request {request_id} is being ended")


async def sums(exchange: Exchange, span: Span, group: Group, owner: str | None) -> list[UsageTotal]:
    totals = store_of(exchange).usage.totals
    return await asyncio.to_thread(totals, since=span.since, until=span.until, group=group, owner=owner)


def to_span(since: str | None, until: str | None) -> Span:
    """What `from` and `to` mean.

    Raises:
        BadRequest: one is no ISO 8601 date or time, or they are the wrong way round.
    """
    end = to_seconds("to", until, is_end=True) if until else time.time()
    start = to_seconds("from", since) if since else end - 30 * DAY_S
    if start > end:
        raise BadRequest("from is later than to", param="from")
    return Span(start, end)


def to_seconds(param: str, text: str, *, is_end: bool = False) -> float:
    try:
        moment = datetime.datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return moment.timestamp() + (DAY_S if is_end and len(text) == len("2026-01-31") else 0.0)
    except (ValueError, OverflowError):
        raise BadRequest(f"{param}: {text[:40]!r} is no date or time in ISO 8601, such as 2026-01-31", param=param) from None


def to_csv(columns: tuple[str, ...], rows: Iterable[Any]) -> Iterator[str]:
    """A header line, then one per row."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(getattr(row, column)) for column in columns])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()  # the header, if there was no row


async def in_thread(lines: Iterator[str]) -> Any:
    """The lines in chunks, each fetched in a thread: the iterator reads the ledger."""
    while chunk := await asyncio.to_thread(_take, lines):
        yield chunk


def _take(lines: Iterator[str]) -> str:
    return "".join(line for _, line in zip(range(EXPORT_CHUNK_ROWS), lines, strict=False))


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def attachment(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}
