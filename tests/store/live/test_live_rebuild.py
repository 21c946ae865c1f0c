from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from atlas.errors import BudgetExhausted, LedgerUnavailable, LimitsUnavailable, RateLimited
from atlas.store.live import Live
from atlas.store.live_values import Ask, Counts, Grant
from atlas.types import Limits, Usage
from tests.store.live.conftest import NOTHING, Opener, Server

ids = itertools.count()
NONE = Limits()
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class Row(NamedTuple):
    owner: str
    key_id: str
    day: str
    tokens: int
    cost: int


class Open(NamedTuple):
    request_id: str
    at: float
    owner: str
    key_id: str
    tokens: int
    cost: int


class Book:
    """What the ledger would know, kept by the test as the meter keeps it."""

    def __init__(self) -> None:
        self.open: dict[str, Open] = {}
        self.ended: list[Usage] = []
        self.num_read = 0

    def reserve(self, one: Ask, grant: Grant) -> None:
        self.open[one.request_id] = Open(one.request_id, grant.at, one.owner, one.key_id, one.tokens, one.cost)

    def settle(self, one: Ask, tokens: int) -> None:
        row = self.open.pop(one.request_id)
        self.ended.append(
            Usage(
                request_id=row.request_id,
                at=row.at,
                owner=row.owner,
                key_id=row.key_id,
                route="/v1",
                model="m",
                state="completed",
                completion_tokens=tokens,
            )
        )

    def counts(self) -> Counts:
        self.num_read += 1
        spent = [Row(row.owner, row.key_id, day(row.at), row.completion_tokens, 0) for row in self.ended]
        return Counts(spent, list(self.open.values()), list(self.ended))


def day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def ask(user: Limits = NONE, key: Limits = NONE, *, tokens: int = 10, **fields: Any) -> Ask:
    names = {"request_id": f"req_{next(ids)}", "owner": "usr_a", "key_id": "key_a", **fields}
    return Ask(user_limits=user, key_limits=key, tokens=tokens, **names)


async def used(live: Live) -> int:
    [budget] = (await live.remaining("usr_a", "", Limits(tokens_per_day=1), NONE)).budgets
    return budget.used


async def admit(live: Live, book: Book, one: Ask) -> Ask:
    book.reserve(one, await live.admit(one))
    return one


async def back(live: Live) -> None:
    """Wait until it can be used again."""
    deadline_s = time.monotonic() + 20
    while True:
        with contextlib.suppress(LimitsUnavailable):
            await live.ping()
            return
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


async def test_a_new_server_starts_with_nothing_running(open_on: Opener, own_server: Server) -> None:
    """What ran when the last one was killed ended with it; its windows and budgets stand."""
    first = open_on(own_server, window_s=30.0)
    limits = Limits(concurrency=1, requests_per_minute=2)
    await first.admit(ask(limits))
    second = open_on(own_server, window_s=30.0)
    await second.admit(ask(limits))
    with pytest.raises(RateLimited, match="requests_per_minute"):
        await second.admit(ask(Limits(requests_per_minute=2)))


async def test_without_the_ledger_nothing_is_admitted(open_on: Opener, own_server: Server) -> None:
    is_broken = True

    def source() -> Counts:
        if is_broken:
            raise LedgerUnavailable("disk full")
        return NOTHING

    live = open_on(own_server, source=source)
    with pytest.raises(LimitsUnavailable):
        await live.admit(ask())
    assert live.trouble == "disk full"
    is_broken = False
    await back(live)
    await live.admit(ask())


async def test_without_a_source_the_counts_have_to_be_given(open_on: Opener, own_server: Server) -> None:
    live = open_on(own_server, source=None)
    with pytest.raises(LimitsUnavailable):
        await live.admit(ask())
    today = day(time.time())
    await live.rebuild([Row("usr_a", "key_a", today, 70, 0), Row("usr_a", "", today, 20, 0)], [])
    assert await used(live) == 90
    with pytest.raises(BudgetExhausted, match="tokens_per_month of this user is used up: 90 of 100"):
        await live.admit(ask(Limits(tokens_per_month=100), tokens=11))
    with pytest.raises(BudgetExhausted, match="tokens_per_day of this key is used up: 70 of 80"):
        await live.admit(ask(NONE, Limits(tokens_per_day=80), tokens=11))


async def test_yesterday_counts_for_the_month_only(open_on: Opener, own_server: Server) -> None:
    live = open_on(own_server, source=None)
    now = datetime.now(UTC)
    other_day = now.replace(day=2 if now.day == 1 else 1).strftime("%Y-%m-%d")
    await live.rebuild([Row("usr_a", "key_a", other_day, 70, 7)], [])
    found = await live.remaining("usr_a", "", Limits(tokens_per_day=9, tokens_per_month=99, cost_per_month=9), NONE)
    assert [(budget.kind, budget.period, budget.used) for budget in found.budgets] == [
        ("tokens", "day", 0),
        ("tokens", "month", 70),
        ("cost", "month", 7),
    ]
    assert [budget.remaining for budget in found.budgets] == [9, 29, 2]
