"""Metering: what a request may use is reserved before its first token, and what it used is settled before its last byte.

So after a crash each answered request stands here once with the usage it was told, and each cut one once as `interrupted`, with
what was reserved for it. Reserving and settling are on the path of every request: all that wait share one commit, and each
statement runs once for the whole group (bulk.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from atlas.errors import Conflict
from atlas.store.bulk import Bulk
from atlas.store.ledger import Ledger
from atlas.store.reports import HOUR_S, Reservation, UsageReports, open_reservations
from atlas.store.rules import clipped
from atlas.store.tables import reservations, usage_events, usage_hours
from atlas.store.written import Written
from atlas.types import Usage

PRUNE_ROWS = 500  # deleted in one commit: about 10 ms during which settling waits; chosen
DAY_S = 86400.0
FAILED_STATES = ("failed", "interrupted")

_TEXT_LIMITS = {"route": 64, "model": 200, "finish": 64}
_PLACE = ("hour", "owner", "key_id", "model")
_SUMS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost", "wall_s")
_EXTEND = (
    reservations.update()
    .where(reservations.c.request_id == sa.bindparam("id"))
    .values(tokens=sa.bindparam("tokens"), cost=sa.bindparam("cost"))
)


class _Totals(NamedTuple):
    request_id: str
    tokens: int
    cost: int


class UsageBook(UsageReports):
    """Reservations, events and sums. Safe from any thread; the futures are done when it is on the disk."""

    def __init__(self, ledger: Ledger, *, usage_days: int) -> None:
        super().__init__(ledger)
        self._usage_days = usage_days
        self._sql = Bulk(ledger.database.engine.dialect)

    def reserve(self, reservation: Reservation) -> Written[None]:
        """Note what a request may use, before it uses any.

        The future raises `Conflict` if this request id has been reserved or settled before, and `LedgerUnavailable`.
        """
        return self._ledger.batch(self._reserve, reservation)

    def extend(self, request_id: str, *, tokens: int, cost: int) -> Written[None]:
        """Set the reservation's new totals. A request that is settled stays as it is."""
        return self._ledger.batch(self._extend, _Totals(request_id, tokens, cost))

    def settle(self, usage: Usage) -> Written[None]:
        """Turn the reservation into an event and add it to the sums, in one transaction; a second time changes nothing."""
        return self._ledger.batch(self._settle, usage)

    def interrupt_open(self) -> list[Usage]:
        """Settle what a crash left open, at the most it can have used. To be called before the first request."""

        def work(connection: sa.Connection) -> list[Usage]:
            usages = [_interrupted(reservation) for reservation in open_reservations(connection)]
            if usages:
                self._settle(connection, usages)
            return usages

        return self._ledger.write(work).result()

    def prune(self, now_s: float) -> int:
        """Delete single events older than `ledger.usage_days`, a few at a time, and return how many; sums stay."""
        before = now_s - self._usage_days * DAY_S
        oldest = sa.select(usage_events.c.request_id).where(usage_events.c.at < before).limit(PRUNE_ROWS)
        query = usage_events.delete().where(usage_events.c.request_id.in_(oldest))
        total = 0
        while num_deleted := self._ledger.write(lambda connection: connection.execute(query).rowcount).result():
            total += num_deleted
        return total

    def _reserve(self, connection: sa.Connection, items: Sequence[Reservation]) -> Sequence[None]:
        ids = [item.request_id for item in items]
        if self._sql.has_any(connection, usage_events, ids) or self._sql.insert(connection, reservations, _rows(items)) != len(
            ids
        ):
            # if one of several is to blame, each is tried alone
            raise Conflict(f"request '{ids[0]}' has been reserved or settled before")
        return [None] * len(items)

    def _extend(self, connection: sa.Connection, items: Sequence[_Totals]) -> Sequence[None]:
        connection.execute(_EXTEND, [{"id": item.request_id, "tokens": item.tokens, "cost": item.cost} for item in items])
        return [None] * len(items)

    def _settle(self, connection: sa.Connection, items: Sequence[Usage]) -> Sequence[None]:
        usages = list({item.request_id: item for item in reversed(items)}.values())  # the first of each id
        self._sql.delete(connection, reservations, [usage.request_id for usage in usages])
        num_new = self._sql.insert(connection, usage_events, _rows(usages))
        if num_new == len(usages):
            self._sql.add_up(connection, usage_hours, _sums(usages), keys=_PLACE)
        elif len(usages) > 1:
            raise Conflict("one of several requests was settled before")  # each is tried alone; nobody sees this
        return [None] * len(items)


def _rows(values: Sequence[Reservation | Usage]) -> list[dict[str, Any]]:
    return [_row(value) for value in values]


def _row(value: Reservation | Usage) -> dict[str, Any]:
    row = msgspec.structs.asdict(value)
    for name, limit in _TEXT_LIMITS.items():
        text = row.get(name, "")
        if len(text) > limit or not text.isprintable():
            row[name] = clipped(text, limit)
    return row


def _sums(usages: Sequence[Usage]) -> list[dict[str, Any]]:
    """One row of increments per hour, owner, key and model."""
    rows: dict[tuple[int, str, str, str], dict[str, Any]] = {}
    for usage in usages:
        place = (int(usage.at // HOUR_S), usage.owner, usage.key_id, clipped(usage.model, 200))
        row = rows.get(place)
        if row is None:
            row = rows[place] = dict(zip(_PLACE, place, strict=True), **dict.fromkeys(_SUMS, 0))
        row["requests"] += 1
        row["failed"] += usage.state in FAILED_STATES
        for name in _SUMS[2:]:
            row[name] += getattr(usage, name)
    return list(rows.values())


def _interrupted(reservation: Reservation) -> Usage:
    return Usage(
        request_id=reservation.request_id,
        at=reservation.at,
        owner=reservation.owner,
        key_id=reservation.key_id,
        route=reservation.route,
        model=reservation.model,
        state="interrupted",
        prompt_tokens=reservation.prompt_tokens,
        completion_tokens=max(0, reservation.tokens - reservation.prompt_tokens),
        cost=reservation.cost,
        finish="interrupted",
        is_estimated=True,
    )
