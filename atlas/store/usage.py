"""Metering: what a request may use is reserved before its first token, and what it used is settled before its last byte.

So after a crash each answered request stands here once with the usage it was told, and each cut one once as `interrupted`, with
what was reserved for it. Reserving and settling are on the path of every request: all that wait share one commit, and each
statement runs once for the whole group (bulk.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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

_ROUTE_CHARS, _MODEL_CHARS, _FINISH_CHARS = 64, 200, 64
_PLACE = ("hour", "owner", "key_id", "model")
_SUMS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost", "wall_s")
_EXTEND = (
    reservations.update()
    .where(reservations.c.request_id == sa.bindparam("id"))
    .values(
        tokens=sa.bindparam("tokens"),
        cost=sa.bindparam("cost"),
        model=sa.func.coalesce(sa.bindparam("model", type_=sa.String), reservations.c.model),
    )
)


class _Totals(NamedTuple):
    request_id: str
    tokens: int
    cost: int
    model: str | None


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

    def extend(self, request_id: str, *, tokens: int, cost: int, model: str | None = None) -> Written[None]:
        """Set the reservation's new totals, and the model if another answers now. A request that is settled stays as it is."""
        return self._ledger.batch(self._extend, _Totals(request_id, tokens, cost, model and _text(model, _MODEL_CHARS)))

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
        if self._sql.has_any(connection, usage_events, ids) or self._insert(connection, reservations, items) != len(ids):
            # if one of several is to blame, each is tried alone
            raise Conflict(f"request '{ids[0]}' has been reserved or settled before")
        return [None] * len(items)

    def _insert(self, connection: sa.Connection, table: sa.Table, values: Sequence[Reservation | Usage]) -> int:
        return self._sql.insert(connection, table, values[0].__struct_fields__, [_row(value) for value in values])

    def _extend(self, connection: sa.Connection, items: Sequence[_Totals]) -> Sequence[None]:
        connection.execute(_EXTEND, [{"id": item.request_id, **item._asdict()} for item in items])
        return [None] * len(items)

    def _settle(self, connection: sa.Connection, items: Sequence[Usage]) -> Sequence[None]:
        usages = list({item.request_id: item for item in reversed(items)}.values())  # the first of each id
        self._sql.delete(connection, reservations, [usage.request_id for usage in usages])
        num_new = self._insert(connection, usage_events, usages)
        if num_new == len(usages):
            self._sql.add_up(connection, usage_hours, _PLACE + _SUMS, _sums(usages), keys=_PLACE)
        elif len(usages) > 1:
            raise Conflict("one of several requests was settled before")  # each is tried alone; nobody sees this
        return [None] * len(items)


def _row(value: Reservation | Usage) -> Sequence[Any]:
    mended = _mended(value.route, value.model, value.finish if isinstance(value, Usage) else "")
    return msgspec.structs.astuple(msgspec.structs.replace(value, **mended) if mended else value)


@lru_cache
def _mended(route: str, model: str, finish: str) -> dict[str, str]:
    """Those texts from outside that their columns cannot hold as they are; nearly always none."""
    texts = {"route": (route, _ROUTE_CHARS), "model": (model, _MODEL_CHARS), "finish": (finish, _FINISH_CHARS)}
    return {name: _text(text, limit) for name, (text, limit) in texts.items() if _text(text, limit) != text}


def _text(text: str, limit: int) -> str:
    return text if len(text) <= limit and text.isprintable() else clipped(text, limit)


def _sums(usages: Sequence[Usage]) -> list[list[Any]]:
    """One row of increments per hour, owner, key and model."""
    rows: dict[tuple[int, str, str, str], list[Any]] = {}
    for usage in usages:
        place = (int(usage.at // HOUR_S), usage.owner, usage.key_id, _text(usage.model, _MODEL_CHARS))
        row = rows.get(place)
        if row is None:
            row = rows[place] = [*place, 0, 0, 0, 0, 0, 0, 0.0]  # as _PLACE and _SUMS name them
        row[4] += 1
        row[5] += usage.state in FAILED_STATES
        row[6] += usage.prompt_tokens
        row[7] += usage.cached_tokens
        row[8] += usage.completion_tokens
        row[9] += usage.cost
        row[10] += usage.wall_s
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
