"""What was used, read back: sums from the hourly rollups, single requests from the events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from atlas.store.ledger import Ledger
from atlas.store.live_values import Counts
from atlas.store.tables import reservations, usage_events, usage_hours
from atlas.types import RequestState, Usage

Group = Literal["key", "user", "model", "day", "hour"]
HOUR_S = 3600
LATELY_S = 70.0  # windows are a minute long and count from admission; the rest is for clocks that differ
EXPORT_ROWS = 500  # read at a time by `events`: bounds memory, and how long a snapshot is held

_COUNTS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
_GROUP_COLUMNS = {
    "key": usage_hours.c.key_id,
    "user": usage_hours.c.owner,
    "model": usage_hours.c.model,
    "day": usage_hours.c.hour // sa.literal_column("24", sa.Integer),
    "hour": usage_hours.c.hour,
}


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What a running request may use at most.

    Attributes:
        at: Unix seconds when it was admitted.
        tokens: prompt and completion together.
        prompt_tokens: the part of them that is the prompt.
        cost: of all of them, in millionths of the currency.
    """

    request_id: str
    at: float
    owner: str
    key_id: str
    route: str
    model: str
    tokens: int
    prompt_tokens: int
    cost: int = 0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What one key used on one UTC day ("YYYY-MM-DD"), by the time of admission."""

    owner: str
    key_id: str
    day: str
    tokens: int
    cost: int


class UsageTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over one group.

    Attributes:
        group: id of the key or user, model id, "YYYY-MM-DD" or "YYYY-MM-DDTHH:00Z".
        failed: requests that failed or were interrupted: our fault, not the client's.
        cost: millionths of the currency.
        wall_s: summed over the requests.
    """

    group: str
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int
    wall_s: float


class UsageReports:
    """The reading half of the usage book."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def totals(
        self,
        *,
        since: float,
        until: float,
        group: Group,
        owner: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
    ) -> list[UsageTotal]:
        """Sums over the hours that overlap [since, until) (Unix seconds); by time, or the group with most tokens first."""
        column = _GROUP_COLUMNS[group]
        hours = (usage_hours.c.hour >= int(since // HOUR_S), usage_hours.c.hour < -int(-until // HOUR_S))
        sums = [sa.func.sum(usage_hours.c[name]).label(name) for name in (*_COUNTS, "wall_s")]
        query = sa.select(column.label("group"), *sums).where(*hours).group_by(column)
        query = _filtered(query, usage_hours, owner=owner, key_id=key_id, model=model)
        found = self._ledger.read(lambda connection: [_total(group, row) for row in connection.execute(query).mappings()])
        if group in ("day", "hour"):
            return sorted(found, key=lambda total: total.group)
        return sorted(found, key=lambda total: (-(total.prompt_tokens + total.completion_tokens), total.group))

    def recent(
        self,
        *,
        limit: int = 100,
        before: tuple[float, str] | None = None,
        owner: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
        state: RequestState | None = None,
    ) -> list[Usage]:
        """Single requests, the newest first; `before` is (at, request_id) of the last one seen."""
        query = _filtered(_events(), usage_events, owner=owner, key_id=key_id, model=model, state=state)
        if before is not None:
            query = query.where(usage_events.c.at <= before[0], _position() < sa.tuple_(*before))
        query = query.order_by(usage_events.c.at.desc(), usage_events.c.request_id.desc()).limit(limit)
        return self._usages(query)

    def events(self, *, since: float, until: float, owner: str | None = None) -> Iterator[Usage]:
        """Single requests of [since, until), the oldest first, in bounded memory."""
        after: tuple[float, str] = (since, "")
        while True:
            query = _events().where(usage_events.c.at >= after[0], usage_events.c.at < until, _position() > sa.tuple_(*after))
            query = _filtered(query, usage_events, owner=owner)
            page = self._usages(query.order_by(usage_events.c.at, usage_events.c.request_id).limit(EXPORT_ROWS))
            yield from page
            if len(page) < EXPORT_ROWS:
                return
            after = (page[-1].at, page[-1].request_id)

    def get(self, request_id: str) -> Usage | None:
        """One request that has ended; None if there is none of that id."""
        found = self._usages(_events().where(usage_events.c.request_id == request_id))
        return found[0] if found else None

    def spent(self, *, since: float) -> list[Spent]:
        """What was used per key and UTC day, from the day of `since` on."""
        return self._ledger.read(lambda connection: spent_since(connection, since))

    def counts(self) -> Counts:
        """What limits are counted anew from: this month's sums, what runs, what ended lately; one reading of the ledger."""
        now_s = time.time()
        month = datetime.fromtimestamp(now_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        lately = _events().where(usage_events.c.at >= now_s - LATELY_S)

        def work(connection: sa.Connection) -> Counts:
            recent = [Usage(**row) for row in connection.execute(lately).mappings()]
            return Counts(spent_since(connection, month.timestamp()), open_reservations(connection), recent)

        return self._ledger.read(work)

    def open_reservations(self) -> list[Reservation]:
        """Requests that were reserved for and not settled, the oldest first."""
        return self._ledger.read(open_reservations)

    def _usages(self, query: sa.Select[Any]) -> list[Usage]:
        return self._ledger.read(lambda connection: [Usage(**row) for row in connection.execute(query).mappings()])


def spent_since(connection: sa.Connection, since: float) -> list[Spent]:
    """As the method `spent`, in the caller's transaction."""
    day, tokens = _GROUP_COLUMNS["day"], usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens
    query = (
        sa.select(
            usage_hours.c.owner,
            usage_hours.c.key_id,
            day.label("day"),
            sa.func.sum(tokens).label("tokens"),
            sa.func.sum(usage_hours.c.cost).label("cost"),
        )
        .where(usage_hours.c.hour >= int(since // (24 * HOUR_S)) * 24)
        .group_by(usage_hours.c.owner, usage_hours.c.key_id, day)
    )
    return [_spent(row) for row in connection.execute(query).mappings()]


def open_reservations(connection: sa.Connection) -> list[Reservation]:
    """As the method, in the caller's transaction."""
    rows = connection.execute(sa.select(reservations).order_by(reservations.c.at)).mappings()
    return [Reservation(**row) for row in rows]


def _filtered(query: sa.Select[Any], table: sa.Table, **wanted: str | None) -> sa.Select[Any]:
    return query.where(*(table.c[name] == value for name, value in wanted.items() if value is not None))


def _events() -> sa.Select[Any]:
    return sa.select(usage_events)


def _position() -> sa.Tuple:
    return sa.tuple_(usage_events.c.at, usage_events.c.request_id)


def _total(group: Group, row: sa.RowMapping) -> UsageTotal:
    counts = {name: int(row[name]) for name in _COUNTS}  # PostgreSQL sums bigints as decimals
    return UsageTotal(group=_label(group, row["group"]), wall_s=row["wall_s"], **counts)


def _spent(row: sa.RowMapping) -> Spent:
    return Spent(
        owner=row["owner"], key_id=row["key_id"], day=_label("day", row["day"]), tokens=int(row["tokens"]), cost=int(row["cost"])
    )


def _label(group: Group, value: Any) -> str:  # an hour or day number, or an id
    if group == "day":
        return datetime.fromtimestamp(value * 24 * HOUR_S, UTC).strftime("%Y-%m-%d")
    if group == "hour":
        return datetime.fromtimestamp(value * HOUR_S, UTC).strftime("%Y-%m-%dT%H:00Z")
    return str(value)
