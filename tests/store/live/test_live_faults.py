from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from atlas.errors import BudgetExhausted, LimitsUnavailable, RateLimited
from atlas.store.live import Live, open_live
from atlas.store.live_values import Ask, Counts, Grant
from atlas.types import Limits, Usage
from tests.store.live.conftest import NOTHING, Opener, Server, eventually

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


async def test_killed_it_refuses_and_then_goes_on_with_the_counts_it_had(open_on: Opener, own_server: Server) -> None:
    book = Book()
    live = open_on(own_server, source=book.counts, window_s=30.0)
    limits = Limits(requests_per_minute=5, tokens_per_minute=100, concurrency=4, tokens_per_day=1000)
    running = [await admit(live, book, ask(limits)) for _ in range(4)]
    book.settle(running[0], 10)
    await live.settle(running[0], tokens=10, cost=0)
    own_server.kill()
    with pytest.raises(LimitsUnavailable) as caught:
        await live.admit(ask(limits))
    assert caught.value.retry_after_s == 1.0
    assert caught.value.status == 503
    assert live.trouble
    own_server.start()
    await back(live)
    assert live.trouble == ""
    assert await used(live) == 40
    with pytest.raises(RateLimited, match="tokens_per_minute"):  # the bucket sums survived, none doubled
        await live.admit(ask(limits, tokens=61))
    await admit(live, book, ask(limits, tokens=60))
    with pytest.raises(RateLimited, match=r"requests_per_minute|concurrency"):
        await live.admit(ask(limits, tokens=0))


async def test_having_lost_its_data_it_is_rebuilt_from_the_ledger(open_on: Opener, own_server: Server) -> None:
    book = Book()
    live = open_on(own_server, source=book.counts, window_s=30.0)
    limits = Limits(requests_per_minute=5, tokens_per_minute=100, concurrency=2, tokens_per_day=1000)
    first = await admit(live, book, ask(limits, tokens=30))
    book.settle(first, 20)
    await live.settle(first, tokens=20, cost=0)
    running = await admit(live, book, ask(limits, tokens=40))
    own_server.kill()
    own_server.lose_data()
    own_server.start()
    await back(live)
    assert await used(live) == 60
    with pytest.raises(RateLimited, match=r"tokens_per_minute of this user is reached: 60 of 100"):
        await live.admit(ask(limits, tokens=41))
    await admit(live, book, ask(limits, tokens=5))
    with pytest.raises(RateLimited, match="concurrency of this user is reached: 2 of 2"):
        await live.admit(ask(limits))
    await live.settle(running, tokens=25, cost=0)  # what was reserved before the loss is corrected after it
    assert await used(live) == 50
    for _ in range(2):
        book.settle(one := await admit(live, book, ask(limits, tokens=0)), 0)
        await live.settle(one, tokens=0, cost=0)
    with pytest.raises(RateLimited, match="requests_per_minute of this user is reached: 5 of 5"):
        await live.admit(ask(limits, tokens=0))


async def test_what_the_append_only_file_has_lost_is_added_once(open_on: Opener, own_server: Server) -> None:
    """The file may end before the kill; here it ends where a copy of the folder was taken."""
    book = Book()
    live = open_on(own_server, source=book.counts, window_s=30.0)
    limits = Limits(requests_per_minute=9, tokens_per_minute=100)
    early = [await admit(live, book, ask(limits, tokens=10)) for _ in range(3)]
    book.settle(early[0], 5)
    await live.settle(early[0], tokens=5, cost=0)
    own_server.keep_copy()
    late = [await admit(live, book, ask(limits, tokens=10)) for _ in range(3)]
    book.settle(late[0], 7)
    await live.settle(late[0], tokens=7, cost=0)
    own_server.kill()
    own_server.restore_copy()
    for _ in range(2):  # a second rebuild adds nothing
        own_server.start()
        await back(live)
        with pytest.raises(RateLimited, match="tokens_per_minute of this user is reached: 52 of 100"):
            await live.admit(ask(limits, tokens=49))
        own_server.kill()
        await eventually(lambda: live.trouble != "")
    own_server.start()
    await back(live)
    for one in (*early[1:], *late[1:]):
        await live.settle(one, tokens=0, cost=0)
    grant = await live.admit(ask(limits, tokens=0))
    assert [(window.kind, window.remaining) for window in grant.limits] == [("requests", 2), ("tokens", 88)]


async def test_emptied_under_way_it_is_rebuilt_before_it_admits(open_on: Opener, own_server: Server) -> None:
    book = Book()
    live = open_on(own_server, source=book.counts)
    limits = Limits(tokens_per_day=100)
    await admit(live, book, ask(limits, tokens=90))
    own_server.ask("FLUSHALL")
    with pytest.raises(BudgetExhausted):
        await live.admit(ask(limits, tokens=20))


async def test_a_lost_script_is_loaded_again_and_nothing_else_happens(open_on: Opener, own_server: Server) -> None:
    book = Book()
    live = open_on(own_server, source=book.counts)
    await admit(live, book, ask())
    own_server.ask("SCRIPT FLUSH")
    await asyncio.gather(*(admit(live, book, ask()) for _ in range(20)))
    assert await used(live) == 210
    assert book.num_read == 1


async def test_a_hanging_redis_is_an_unavailable_one_and_what_it_does_late_is_undone(open_on: Opener, own_server: Server) -> None:
    live = open_on(own_server)
    limits = Limits(requests_per_minute=1, concurrency=1)
    await live.ping()
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    start_s = time.monotonic()
    with pytest.raises(LimitsUnavailable):
        await live.admit(ask(limits))
    assert time.monotonic() - start_s < 10  # a second, on a machine with time
    with pytest.raises(LimitsUnavailable):
        await live.admit(ask(limits))
    own_server.process.send_signal(signal.SIGCONT)
    await back(live)
    await eventually(lambda: not live._owed)
    assert await used(live) == 0
    await live.admit(ask(limits))


async def test_an_admission_that_nobody_waits_for_any_more_is_undone(open_on: Opener, own_server: Server) -> None:
    live = open_on(own_server)
    limits = Limits(concurrency=3, requests_per_minute=3)
    await live.ping()
    for delay_s in (0.0, 0.0001, 0.0003, 0.001):
        tasks = [asyncio.create_task(live.admit(ask(limits))) for _ in range(3)]
        await asyncio.sleep(delay_s)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Grant):
                await live.settle(ask(limits, request_id=result.request_id), tokens=0, cost=0)
        await eventually(lambda: not live._owed)
        if any(isinstance(result, Grant) for result in results):
            break  # these were let in and count
        assert await used(live) == 0
    cancelled = asyncio.create_task(live.admit(ask(Limits(concurrency=1), owner="usr_b")))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await eventually(lambda: not live._owed)
    await live.admit(ask(Limits(concurrency=1), owner="usr_b"))


async def test_a_correction_is_kept_until_redis_is_back(open_on: Opener, own_server: Server) -> None:
    book = Book()
    live = open_on(own_server, source=book.counts)
    limits = Limits(concurrency=1)
    one = await admit(live, book, ask(limits, tokens=100))
    own_server.kill()
    await live.settle(one, tokens=30, cost=0)  # the ledger has not got it: only this correction knows
    await live.settle(one, tokens=30, cost=0)
    own_server.start()
    await back(live)
    await eventually(lambda: not live._owed)
    assert await used(live) == 30
    await live.admit(ask(limits))


async def test_corrections_beyond_what_is_kept_are_made_by_a_rebuild(
    open_on: Opener, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.store.live.MAX_OWED", 3)
    book = Book()
    live = open_on(own_server, source=book.counts)
    asks = [await admit(live, book, ask(tokens=100)) for _ in range(8)]
    own_server.kill()
    for one in asks:
        book.settle(one, 1)
        await live.settle(one, tokens=1, cost=0)
    own_server.start()
    await back(live)
    await eventually(lambda: not live._owed)
    assert await used(live) == 8


async def test_full_memory_lets_nothing_in_and_corrections_through(open_on: Opener, own_server: Server) -> None:
    live = open_on(own_server)
    await live.admit(one := ask(tokens=100))
    own_server.ask("CONFIG SET maxmemory 1")
    await live.settle(one, tokens=10, cost=0)
    assert await used(live) == 10
    with pytest.raises(LimitsUnavailable):
        await live.admit(ask())
    await eventually(lambda: "maxmemory" in live.trouble)
    own_server.ask("CONFIG SET maxmemory 100mb")
    await back(live)
    await live.admit(ask())


async def test_everything_kept_has_an_end(open_on: Opener, own_server: Server) -> None:
    book = Book()
    live = open_on(own_server, source=book.counts)
    limits = Limits(requests_per_minute=5, tokens_per_minute=1000, concurrency=5, tokens_per_day=1000)
    await admit(live, book, ask(limits, limits))
    book.settle(await admit(live, book, ask(limits, limits)), 1)
    other = open_on(own_server, source=book.counts)  # rebuilt keys end, too
    await other.ping()
    names = {line for line in own_server.ask("KEYS *").decode().split("\r\n") if ":live:" in line}
    kinds = {name.split(":live:")[1].split(":")[0] for name in names}
    assert kinds == {"ready", "q", "w", "c", "b", "r"}
    endless = {name for name in names if own_server.ask(f"TTL {name}") == b":-1\r\n"}
    assert {name.split(":live:")[1] for name in endless} == {"ready"}


async def test_a_redis_too_old_is_named() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = b"redis_version:6.2.14\r\nrun_id:abc\r\naof_enabled:0\r\n"
        while line := await reader.readline():
            if line.strip().upper() == b"INFO":
                writer.write(b"$%d\r\n%b\r\n" % (len(text), text))
            elif line.strip().upper() in (b"CLIENT", b"SELECT"):
                writer.write(b"+OK\r\n")
        writer.close()

    listener = await asyncio.start_server(pretend, "127.0.0.1")
    live = open_live(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}", source=lambda: NOTHING)
    with pytest.raises(LimitsUnavailable):
        await live.ping()
    assert live.trouble == "Redis 6.2.14 is too old; 7.0 or later is needed"
    await live.close()
    listener.close()


async def test_kills_under_load_admit_nothing_too_much(open_on: Opener, own_server: Server) -> None:
    """Fifty requests a second while Redis is killed again and again: the budget is never exceeded, and all of it can be used."""
    book = Book()
    live = open_on(own_server, source=book.counts)
    limits = Limits(tokens_per_day=1000)
    end_s = time.monotonic() + 6.0
    worst_sum = 0

    async def client() -> None:
        nonlocal worst_sum
        while time.monotonic() < end_s:
            with contextlib.suppress(LimitsUnavailable, BudgetExhausted):
                one = await admit(live, book, ask(limits))
                total = sum(row.tokens for row in book.open.values()) + sum(row.completion_tokens for row in book.ended)
                worst_sum = max(worst_sum, total)
                await asyncio.sleep(0.01)
                book.settle(one, 1)
                await live.settle(one, tokens=1, cost=0)
            await asyncio.sleep(0.15)

    async def killer() -> None:
        while time.monotonic() < end_s - 1.0:
            await asyncio.sleep(0.7)
            own_server.kill()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(own_server.start)

    await asyncio.gather(killer(), *(client() for _ in range(8)))
    await back(live)
    await eventually(lambda: not live._owed)
    assert len(book.ended) > 50
    assert worst_sum <= 1000
    assert await used(live) == len(book.ended)
